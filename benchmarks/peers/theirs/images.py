"""Batches of images as PyTorch's models take them."""

import numpy as np
import torch


def nchw(x_BHWC: np.ndarray) -> torch.Tensor:
    """Channels first."""
    return torch.from_numpy(np.array(np.moveaxis(x_BHWC, -1, 1), order="C"))


def signed(x_BHWC: np.ndarray) -> torch.Tensor:
    """Bytes as floats in [−1, 1], channels first."""
    return nchw(x_BHWC.astype(np.float32) / 127.5 - 1)


def last(x_BCHW: torch.Tensor) -> torch.Tensor:
    """With channels last in memory."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)
