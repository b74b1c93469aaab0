"""Files of a base model: which there are, and what in them is refused."""
