"""Which clips deserve attention: uncertainty, confident errors, chance, and seeds made of them."""
