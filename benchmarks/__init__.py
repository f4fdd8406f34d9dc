"""Benchmarks: every number is a ratio against a named peer, measured side by side in one run."""
