"""Nearest neighbours of seeds in a store, exact and independent of how the store is cut.

`lsb.search.exact` searches and imports faiss; `lsb.search.rescore` is the kernel and does not.
"""
