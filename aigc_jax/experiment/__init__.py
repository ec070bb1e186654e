"""Builds a run from a config and its data, and restores it from a workdir."""
