"""Recipe, sizes, data and machine → every choice, with its reason."""
