"""RawDataset: undecoded examples, the output of every reader."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Example = dict[str, Any]


@dataclasses.dataclass
class RawDataset:
    """Undecoded examples with their format.

    Attributes:
      splits: `{split: examples}`; an example is a function that reads or generates it.
      image_shape: (H, W, C) of images; None for other data.
      class_names: name of each class; empty without labels.
      kind: main field of an example: "image" or "text" (with "label" if there are classes),
        "messages", or "words" (with "tags"); by default "image" if there is an image shape, else
        "text".
      unlabelled: the reason why a text has no labels, for messages.
      channel_images: as in `Dataset`.
      levels: number of values of a pixel, spread over 0…255.
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


class LazyExamples(Sequence[Callable[[], Example]]):
    """Lazy examples of a split.

    Args:
      make: returns the example of an index.
      count: number of examples.
      ends: number of examples up to the end of each file, (F,), if they are stored in files.
    """

    def __init__(self, make: Callable[[int], Example], count: int, ends: Any = None):
        self._make, self._indices, self.ends = make, range(count), ends

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Callable[[], Example]:  # type: ignore[override]
        return functools.partial(self._make, self._indices[index])


class ColumnarExamples(LazyExamples):
    """Examples in memory, as one sequence or array per field.

    Attributes:
      values: sequence or array by field.
    """

    def __init__(self, **values: Any):
        self.values = values
        count = len(next(iter(values.values())))
        super().__init__(lambda i: {key: column[i] for key, column in values.items()}, count)
