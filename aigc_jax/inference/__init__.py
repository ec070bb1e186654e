"""Autoregressive decoding: the engine, its caches, stop strings."""
