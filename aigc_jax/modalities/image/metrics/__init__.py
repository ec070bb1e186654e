"""Metrics of generated images: distances in the features of a network, neighbours, modes."""
