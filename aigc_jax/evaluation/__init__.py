"""Held-out evaluation of a run; knows no modality."""
