"""Shortlists: the clips of a pool that the fused model scores in a round."""
