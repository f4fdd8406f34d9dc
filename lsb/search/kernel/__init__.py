"""The compiled scan: one C++ source, built on first use for the processor at hand."""
