"""Where examples come from: embedded data sets, TFDS and own files."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.data import mixture
from aigc_jax.data.dataset import (
    Dataset,
    Files,
    Source,
    files_of,
    held_out_split,
    hold_out,
    limited,
)
from aigc_jax.data.raw_dataset import ColumnarExamples, Example, RawDataset
from aigc_jax.modalities import readers
from aigc_jax.modalities.image.stacked_digits import stack
from aigc_jax.modalities.spec import ImageSpec, TextSpec
from aigc_jax.modalities.text.text_examples import check_form, for_evaluation, text_dataset
from aigc_jax.modalities.text.tokenizers import Tokenizer
from aigc_jax.modalities.tfds_source import IMAGE_KEY, LABEL_KEY, tfds_content

__all__ = ["Dataset", "Images", "Source", "load"]


class Images:
    """Examples `{"image", "label", "weight"}` out of any indexable of `(image, label)`.

    Args:
      get: index → image and label, if there are any.
      indices: which of them are the examples.
      whole: all of them in memory, `{"image": (N, H, W, C)}` and perhaps `"label"`: batches are
        then taken at once.
      files: `ends` and `window` of their order, if they lie in large files; see `order.Order`.
    """

    def __init__(
        self,
        get: Callable[[int], tuple[np.ndarray, int | None]],
        indices: Sequence[int],
        whole: Mapping[str, np.ndarray] | None = None,
        files: Files = (),
    ):
        self._get, self._indices, self.files = get, indices, files
        if whole is not None:
            self.batch = functools.partial(self._batch, whole, np.asarray(indices))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, label = self._get(int(self._indices[index]))
        example = {"image": image, "weight": np.float32(1)}
        return example if label is None else example | {"label": np.int32(label)}

    @staticmethod
    def _batch(
        whole: Mapping[str, np.ndarray], chosen: np.ndarray, index_B: np.ndarray
    ) -> dict[str, np.ndarray]:
        chosen_B = chosen[index_B]
        batch = {"image": whole["image"][chosen_B], "weight": np.ones(len(index_B), np.float32)}
        if "label" in whole:
            batch["label"] = whole["label"][chosen_B].astype(np.int32)
        return batch


def load(
    config: Data, tokenizer: Tokenizer | None = None, judge: TextSpec | None = None
) -> Dataset:
    """The data set that `config.source` names.

    Args:
      config: the section `data`.
      tokenizer: one to use instead of that of `config.tokenizer`.
      judge: what a trained model knows, if these are other data to judge it on: all of them are
        held out then, unless the source itself says which.

    Raises:
      UserError: if there is no such source, or it is empty, too short or not of one shape.
    """
    kind, _, argument = config.source.partition(":")
    if kind == mixture.KIND:
        return mixture.load(config, lambda part: load(part, tokenizer, judge))
    embedded = {
        "digits": digits,
        "stacked_digits": functools.partial(stacked_digits, config),
        "python_docs": python_docs,
    }
    if config.source in embedded:
        content, levels = embedded[config.source]()
    elif kind == "tfds" and argument:
        content, levels = tfds_content(argument, config), 256
    elif kind in readers.KINDS and argument:
        content, levels = _own(config), 256
    else:
        known = [*embedded, "tfds:NAME", *(f"{kind}:PATH" for kind in readers.KINDS),
                 f"{mixture.KIND}:0.7*SOURCE,0.3*SOURCE"]  # fmt: skip
        raise UserError(
            f"there is no data.source '{shorten(config.source)}':"
            f" {did_you_mean(shorten(kind), known)}"
        )
    if content.image_shape is None:
        if judge is not None:
            dataset = text_dataset(for_evaluation(content, judge.class_names), config, tokenizer)
            return dataclasses.replace(dataset, texts={})  # no text was trained on
        return text_dataset(content, config, tokenizer)
    check_form(content, config)
    return image_dataset(content, levels, config)


def _own(config: Data) -> RawDataset:
    return readers.read(
        config.source,
        text_field=config.text_field,
        label_field=config.label_field,
        option="data.source",
    )


def digits() -> tuple[RawDataset, int]:
    """1,797 handwritten digits of 8×8 pixels and 17 grey levels, from scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    splits = {"train": ColumnarExamples(image=images, label=found.target)}
    return RawDataset(splits, images.shape[1:], tuple(map(str, found.target_names))), 17


def stacked_digits(config: Data) -> tuple[RawDataset, int]:
    """55,000 images of 8×8 pixels with three of these digits each, one in each colour."""
    content, levels = digits()
    return stack(content, config), levels


def python_docs() -> tuple[RawDataset, int]:
    """The language reference that comes with Python: 79 documents of about 6 kB."""
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    return RawDataset({"train": ColumnarExamples(text=documents)}), 0


def image_dataset(content: RawDataset, levels: int, config: Data) -> Dataset:
    """Images as they are; some held out where the source has no split."""

    def images(examples: Sequence[Callable[[], Example]], indices: Sequence[int]) -> Images:
        def get(i: int) -> tuple[np.ndarray, int | None]:
            example = examples[i]()
            return example[IMAGE_KEY], example.get(LABEL_KEY)

        files = files_of(examples, indices, config)
        return Images(get, indices, getattr(examples, "values", None), files)

    held = held_out_split(content.splits)
    train = content.splits["train"]
    if held is None:
        indices, held_out = hold_out(len(train), config, "images")
        validation = images(train, held_out)
    else:
        indices = range(len(train))
        validation = images(content.splits[held], range(len(content.splits[held])))
    spec = ImageSpec(tuple(content.image_shape), content.class_names, levels)
    own = images(train, limited(indices, config))
    return Dataset(spec, own, validation, parts=content.parts)
