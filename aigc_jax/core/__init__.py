"""Protocols and types that all layers use: objectives, metrics, state, config."""
