"""Batches of images as PyTorch's models take them."""

import numpy as np
import torch


def nchw(x_BHWC: np.ndarray) -> torch.Tensor:
    """Converts images to channels first."""
    return torch.from_numpy(np.array(np.moveaxis(x_BHWC, -1, 1), order="C"))


def signed(x_BHWC: np.ndarray) -> torch.Tensor:
    """Converts bytes to floats in [−1, 1], channels first."""
    return nchw(x_BHWC.astype(np.float32) / 127.5 - 1)


def last(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Converts to the memory format `channels_last`."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)
