"""The peers' side in PyTorch, without our library: models and loops of their examples."""
