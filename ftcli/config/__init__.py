"""The recipe: its schema, YAML with lines, overrides, errors in words."""
