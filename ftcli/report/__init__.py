"""report.html and the model card, from the typed results."""
