"""The exact threshold search against its peers."""
