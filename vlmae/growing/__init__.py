"""The training set of a run grows between its epochs (docs/growing.md)."""
