"""Where things run: the round on one machine today, its stages and their order."""
