"""What fits a card, and the cheapest changes that make it fit: of shapes and choices alone.

`ftcli.training.plan` decides a recipe by the same search. Nothing here loads the recipe's schema,
so that `estimate-vram --model` answers at once.
"""
