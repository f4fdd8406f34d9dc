"""What a round is made of: its settings, what its arms share, and stages that a model makes."""
