"""Writes text samples to a file."""

import os
from collections.abc import Sequence

from aigc_jax.core.files import atomic_path


def save_texts(texts: Sequence[str], path: str) -> str:
    """Writes text samples under numbered rules, atomically; returns the path.

    Raises:
      OSError: if it cannot be written.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write(join_texts(texts) + "\n")
    return path


def join_texts(texts: Sequence[str]) -> str:
    """Joins texts under rules `--- 1 ---`, `--- 2 ---`, …"""
    return "\n".join(f"--- {i + 1} ---\n{text}" for i, text in enumerate(texts))
