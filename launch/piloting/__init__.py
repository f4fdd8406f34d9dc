"""The pilot: criteria, evidence, and the go/no-go page."""
