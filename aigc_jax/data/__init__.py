"""The input pipeline: sources, splits, shuffling, mixtures and the data loader."""
