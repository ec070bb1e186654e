"""Data sets of images: examples `{"image" (H, W, C), "label", "weight"}`."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.feed import HostBatch
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import ColumnarExamples, Example, LazyExamples, RawDataset
from aigc_jax.data.split import file_ends, held_out_split, hold_out, limit_train
from aigc_jax.modalities.image.spec import ImageSpec


class ImageSource:
    """Source of images that are read one by one.

    Args:
      get: returns the image (H, W, C) of an index, and its class or None.
      indices: indices of the examples.
      file_ends: number of examples up to the end of each file; see `data.source.StoredInFiles`.
      shuffle_window: approximate number of examples that are shuffled together.
    """

    def __init__(
        self,
        get: Callable[[int], tuple[np.ndarray, int | None]],
        indices: Sequence[int] | np.ndarray,
        file_ends: np.ndarray | None = None,
        shuffle_window: int = 0,
    ):
        self._get, self._indices = get, indices
        self.file_ends, self.shuffle_window = file_ends, shuffle_window

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        image, label = self._get(int(self._indices[index]))
        example: Example = {"image": image, "weight": np.float32(1)}
        return example if label is None else example | {"label": np.int32(label)}


class InMemoryImages(ImageSource):
    """Source of images in memory, with a fast path for batches.

    Args:
      columns: `{"image": (N, H, W, C)}`, with `"label"` (N,) if there are classes.
      indices: indices of the examples.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], indices: Sequence[int] | np.ndarray):
        self._image, self._label = columns["image"], columns.get("label")
        self._index = np.asarray(indices)
        super().__init__(self._one, indices)

    def batch(self, index_B: np.ndarray) -> HostBatch:
        """Returns the examples `index_B`, stacked."""
        chosen_B = self._index[index_B]
        batch = {"image": self._image[chosen_B], "weight": np.ones(len(index_B), np.float32)}
        if self._label is not None:
            batch["label"] = np.asarray(self._label)[chosen_B].astype(np.int32)
        return batch

    def _one(self, index: int) -> tuple[np.ndarray, int | None]:
        return self._image[index], None if self._label is None else int(self._label[index])


def image_dataset(raw: RawDataset, config: Data) -> Dataset:
    """Builds a data set of images; holds some out if the source has no held-out split.

    Args:
      raw: raw examples.
      config: the section `data`.

    Raises:
      UserError: if `data.format` is one of text, or a split would be empty.
    """
    if config.format != "stream":
        raise UserError(
            f"data.format={config.format} is for text, but data.source="
            f"'{shorten(config.source)}' has images: omit data.format"
        )
    own = held_out_split(raw.splits)
    train = raw.splits["train"]
    if own is None:
        indices, held_out = hold_out(len(train), config, "images")
        validation = _source(train, held_out, config)
    else:
        indices = range(len(train))
        validation = _source(raw.splits[own], range(len(raw.splits[own])), config)
    height, width, channels = raw.image_shape or (0, 0, 0)
    spec = ImageSpec((height, width, channels), raw.class_names, raw.levels)
    own_train = _source(train, limit_train(indices, config), config)
    return Dataset(spec, own_train, validation, channel_images=raw.channel_images)


def _source(
    examples: Sequence[Callable[[], Example]], indices: Sequence[int], config: Data
) -> ImageSource:
    if isinstance(examples, ColumnarExamples):
        return InMemoryImages(examples.values, indices)

    def get(i: int) -> tuple[np.ndarray, int | None]:
        example = examples[i]()
        return example["image"], example.get("label")

    ends = examples.ends if isinstance(examples, LazyExamples) else None
    return ImageSource(get, indices, file_ends(ends, indices, config), config.shuffle_window)
