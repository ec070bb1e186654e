"""What every reader returns, and how files of lines are read."""

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file

Example = dict[str, Any]

MAX_LINE = 1 << 28  # bytes of a line; a file without line ends is read no further


@dataclasses.dataclass
class RawDataset:
    """What a reader found.

    Attributes:
      splits: `{split: examples}`, each of known length; calling one makes it.
      image_shape: (H, W, C) of images; None for others.
      class_names: one per label; empty without labels.
      kind: what an example has: "image" or "text" (with "label" if there are classes), "messages",
        or "words" (with "tags"); by default "image" if there is an image shape, else "text".
      unlabelled: for text without labels, why it has none.
      channel_images: if each channel of an image is an image of its own, such images to learn from,
        (N, H, W) uint8, and their classes (N,); an image's class has theirs as its decimal digits.
      levels: number of values of a pixel, which are spread over 0…255.
      streamed: whether it is text that is too long to be held in memory.
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
    """Examples of a split that take no memory until they are called.

    Args:
      make: index → example.
      count: how many there are.
      ends: the number of examples up to the end of each file that they lie in, if that matters.
    """

    def __init__(self, make: Callable[[int], Example], count: int, ends: Any = None):
        self._make, self._indices, self.ends = make, range(count), ends

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Callable[[], Example]:  # type: ignore[override]
        return functools.partial(self._make, self._indices[index])


class ColumnarExamples(Examples):
    """Examples from one sequence per key, all equally long.

    Attributes:
      values: these sequences or arrays.
    """

    def __init__(self, **values: Any):
        self.values = values
        count = len(next(iter(values.values())))
        super().__init__(lambda i: {key: column[i] for key, column in values.items()}, count)


def decode(data: bytes, where: str) -> str:
    """UTF-8 text; UserError names `where` it is not. A byte order mark stays."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{where} is not UTF-8 text (byte {e.start}): convert it first") from e


def read_lines(path: str) -> Iterator[tuple[str, str]]:
    """Every line of a file, the blank ones too, with what to call it in messages.

    Raises:
      UserError: if the file cannot be read or held in memory, or a line is too long or no UTF-8.
    """
    name = shorten(path)
    with open_file(path) as f:
        check_memory(file_size(f), f"the text of {name}")
        number = 0
        while line := f.readline(MAX_LINE + 1):
            number += 1
            where = f"line {number} of {name}"
            if len(line) > MAX_LINE:
                raise UserError(f"{where} is longer than {MAX_LINE} bytes: is it a file of lines?")
            yield where, decode(line, where).removeprefix("\ufeff" if number == 1 else "")


def parse_json(line: str, where: str, once: Collection[str] = ()) -> Any:
    """The value of one JSON text from anywhere.

    Args:
      line: the text.
      where: what to call it in messages.
      once: keys that no object, at any depth, may have twice.

    Raises:
      UserError: if it is not JSON, or has one of the keys twice.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            for key in once:
                if sum(name == key for name, _ in pairs) > 1:
                    raise UserError(f"{where} has two values under '{shorten(key, 80)}': leave one")
        return record

    try:
        return json.loads(line, object_pairs_hook=checked)
    except (ValueError, RecursionError) as e:  # ValueError: also a number of too many digits
        raise UserError(f"{where} is not JSON ({one_line(e)})") from e


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: no half of a surrogate pair is in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
