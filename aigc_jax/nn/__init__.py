"""Flax (linen) layers shared by several families."""
