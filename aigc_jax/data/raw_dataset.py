"""Raw examples: what every reader returns."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Example = dict[str, Any]


@dataclasses.dataclass
class RawDataset:
    """Raw examples, as they were read.

    Attributes:
      splits: `{split: examples}`; calling an example reads or makes it.
      image_shape: (H, W, C) of images; None for others.
      class_names: one per label; empty without labels.
      kind: what an example has: "image" or "text" (with "label" if there are classes), "messages",
        or "words" (with "tags"); by default "image" if there is an image shape, else "text".
      unlabelled: the reason why text has no labels.
      channel_images: if each channel of an image is an image of its own, such images to learn from,
        (N, H, W) uint8, and their classes (N,); an image's class has theirs as its decimal digits.
      levels: number of values of a pixel, which are spread over 0…255.
      streamed: whether it is text that does not fit into memory.
    """

    splits: Mapping[str, Sequence[Callable[[], Example]]]
    image_shape: tuple[int, int, int] | None = None
    class_names: tuple[str, ...] = ()
    kind: str = ""
    unlabelled: str = ""
    channel_images: tuple[Any, Any] | None = None
    levels: int = 256
    streamed: bool = False

    def __post_init__(self) -> None:
        self.kind = self.kind or ("text" if self.image_shape is None else "image")


class Examples(Sequence[Callable[[], Example]]):
    """Examples of a split that are made when they are called.

    Args:
      make: index → example.
      count: number of examples.
      ends: number of examples up to the end of each file, (F,), if they are stored in files.
    """

    def __init__(self, make: Callable[[int], Example], count: int, ends: Any = None):
        self._make, self._indices, self.ends = make, range(count), ends

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Callable[[], Example]:  # type: ignore[override]
        return functools.partial(self._make, self._indices[index])


class ColumnarExamples(Examples):
    """Examples in memory, as one sequence or array per field.

    Attributes:
      values: these sequences or arrays.
    """

    def __init__(self, **values: Any):
        self.values = values
        count = len(next(iter(values.values())))
        super().__init__(lambda i: {key: column[i] for key, column in values.items()}, count)
