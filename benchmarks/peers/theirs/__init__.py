"""The peers' side, which needs PyTorch and nothing of ours: models and loops of their examples."""
