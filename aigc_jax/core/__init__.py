"""Protocols and types of the whole library: objectives, metrics, state, config."""
