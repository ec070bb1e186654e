"""What every reader returns, and how it decodes text."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from aigc_jax.errors import UserError

Example = dict[str, Any]


@dataclasses.dataclass
class Content:
    """What a reader found.

    Attributes:
      splits: `{split: examples}`, each readable once and of known length.
      image_shape: (H, W, C) for images; None for text.
      class_names: one per label; empty without labels.
    """

    splits: dict[str, Sequence[Callable[[], Example]]]
    image_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] = ()


def decode(data: bytes, where: str) -> str:
    """UTF-8 text; UserError names `where` it is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{where} is not UTF-8 text (byte {e.start}): convert it first") from e
