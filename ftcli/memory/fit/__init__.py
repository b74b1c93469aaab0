"""What fits a GPU, and the cheapest changes that make it fit: from shapes and choices only.

`ftcli.training.plan` decides a recipe by the same search. Nothing here loads the recipe's schema,
so that `estimate-vram --model` answers at once.
"""
