"""What a set of rows is like, and the form that its answers share."""
