"""Searches hyperparameters: `aigc sweep`."""
