"""Autoregressive decoding: the engine, its client `decode`, sampling parameters, stop strings."""
