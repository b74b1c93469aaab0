"""Several trainings of one recipe, side by side."""
