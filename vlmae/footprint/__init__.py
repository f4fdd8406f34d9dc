"""How much memory a training needs, from its config alone: nothing is trained, no weights read."""
