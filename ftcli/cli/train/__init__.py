"""`ftcli train`: its flags and screens, the training of a recipe, and the smoke test."""
