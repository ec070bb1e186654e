"""Decoding loops and diffusion samplers: pure and jitted."""
