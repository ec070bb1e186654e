"""Metrics of generated and classified text."""
