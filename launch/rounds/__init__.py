"""Arms from first labels to last, and the account of what they brought."""
