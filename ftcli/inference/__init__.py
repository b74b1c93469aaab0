"""Open trained models, score rows, and generate answers."""
