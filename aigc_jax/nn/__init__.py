"""Flax (linen) layers that several families share."""
