"""Tensor functions that strategies, heads and models share, for where torch's own are slow."""
