"""Primitives with one definition and a fast implementation for each platform."""
