"""Where examples come from: embedded data sets and TFDS, as random-access sources."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from aigc_jax.config import Data
from aigc_jax.data.spec import ImageSpec, Spec, TextSpec
from aigc_jax.data.text import Windows, join, make_tokenizer, split_documents
from aigc_jax.data.tfds_folder import (
    Records,
    check_folder,
    check_images,
    check_name,
    find_folder,
)
from aigc_jax.errors import UserError, nearest, reason, shown

IMAGE_KEY, LABEL_KEY, TEXT_KEY = "image", "label", "text"  # TFDS feature names


class Source(Protocol):
    """Examples by index, as Grain reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and held-out examples.

    Attributes:
      spec: what a model must know of them.
      train: examples to learn from.
      validation: held-out examples.
      texts: for text, the documents of both splits, for baselines that read plain text.
    """

    spec: Spec
    train: Source
    validation: Source
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class Images:
    """Examples `{"image", "label", "weight"}` out of any indexable of `(image, label)`."""

    def __init__(self, get: Callable[[int], tuple[np.ndarray, int | None]], indices: Sequence[int]):
        self._get, self._indices = get, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image, label = self._get(int(self._indices[index]))
        example = {"image": image, "weight": np.float32(1)}
        return example if label is None else example | {"label": np.int32(label)}


def load(config: Data) -> Dataset:
    """The data set that `config.source` names.

    Raises:
      UserError: if there is no such source, or it is empty, too short or not of one shape.
    """
    name, _, argument = config.source.partition(":")
    if name == "tfds" and argument:
        return load_tfds(argument, config)
    loaders = {"digits": load_digits, "python_docs": load_python_docs}
    if config.source not in loaders:
        known = [*loaders, "tfds:NAME"]
        raise UserError(
            f"there is no data.source '{shown(config.source)}': {nearest(shown(name), known)}"
        )
    return loaders[config.source](config)


def load_digits(config: Data) -> Dataset:
    """1,797 handwritten digits of 8×8 pixels and 17 grey levels, from scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    spec = ImageSpec(images.shape[1:], tuple(map(str, digits.target_names)), levels=17)
    return split_images(
        spec, lambda i: (images[i], digits.target[i]), np.arange(len(images)), config
    )


def load_python_docs(config: Data) -> Dataset:
    """The language reference that comes with Python: 79 documents of about 6 kB."""
    from pydoc_data.topics import topics

    return text_dataset([topics[name] for name in sorted(topics)], None, config)


def load_tfds(name: str, config: Data) -> Dataset:
    """A data set in TFDS form (ArrayRecord, no TensorFlow), from a folder that need not be trusted.

    Args:
      name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.
      config: the section `data`.

    Raises:
      UserError: if there is no such data set, or it cannot be read or trained on.
    """
    folder = _data_set_folder(name, config)
    with readable(name, config):
        check_folder(find_folder(name, folder))
        builder = _builder(find_folder(name, folder))
        splits = {s: split.num_examples for s, split in builder.info.splits.items()}
    features, where = builder.info.features, f"the data set '{name}'"
    if not splits.get("train"):
        raise UserError(
            f"the data set '{name}' has no training examples: it has {shown(splits or 'none')}"
        )
    held_out = next((s for s in ("validation", "test") if splits.get(s)), None)
    if IMAGE_KEY not in features and TEXT_KEY not in features:
        raise UserError(
            f"the data set '{name}' has neither an '{IMAGE_KEY}' nor a '{TEXT_KEY}' feature:"
            f" it has {shown(', '.join(features))}"
        )
    with readable(name, config):
        if IMAGE_KEY in features:
            check_images(features, where)
        used = (IMAGE_KEY, LABEL_KEY) if IMAGE_KEY in features else (TEXT_KEY,)
        sources = {s: Records(builder, s, used, where) for s in ("train", held_out) if s}
        for source in sources.values():
            source[0]
        if IMAGE_KEY in features:
            return _tfds_images(features, sources, held_out, config)
        texts = {s: [_text(record[TEXT_KEY]) for record in sources[s]] for s in sources}
    return text_dataset(texts["train"], texts.get(held_out), config)


def _data_set_folder(name: str, config: Data) -> str:
    """The folder of data sets, in which there is one of this name."""
    check_name(name)
    folder, where = os.path.expanduser(config.data_dir), shown(config.data_dir)
    if not os.path.isdir(folder):
        raise UserError(
            f"data.data_dir={where} is not a folder: write a data set there with aigc prepare"
            f" --name={name} --data_dir={where}"
        )
    if not os.path.isdir(os.path.join(folder, *name.split(":")[0].split("/"))):
        present = sorted(d.name for d in os.scandir(folder) if d.is_dir() and d.name != "downloads")
        hint = shown(nearest(name, present)) if present else "it is empty"
        raise UserError(
            f"there is no data set '{name}' in {where} ({hint}): aigc prepare --name={name} writes"
            " one"
        )
    return folder


def _builder(folder: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.core.read_only_builder.builder_from_directory(folder)


@contextlib.contextmanager
def readable(name: str, config: Data) -> Iterator[None]:
    """Turns whatever TFDS raises for a damaged data set into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"the data set '{name}' in {shown(config.data_dir)} cannot be read"
            f" ({reason(e)}): it must be whole and in ArrayRecord form"
        ) from e


def _text(value: Any) -> str:
    if not isinstance(value, (bytes, str)):
        raise ValueError(f"its text is {shown(value, 80)}")
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _tfds_images(
    features: Any, sources: Mapping[str, Records], held_out: str | None, config: Data
) -> Dataset:
    label = features[LABEL_KEY] if LABEL_KEY in features else None  # noqa: SIM401 (no .get)
    names = tuple(label.names) if label is not None and hasattr(label, "names") else ()
    spec = ImageSpec(tuple(features[IMAGE_KEY].shape), names)

    def getter(split: str) -> Callable[[int], tuple[np.ndarray, int | None]]:
        records = sources[split]

        def get(i: int) -> tuple[np.ndarray, int | None]:
            record = records[i]
            return record[IMAGE_KEY], record[LABEL_KEY] if names else None

        return get

    train, count = getter("train"), len(sources["train"])
    if held_out is None:
        return split_images(spec, train, np.arange(count), config)
    indices = np.arange(config.limit or count)[:count]
    held = Images(getter(held_out), np.arange(len(sources[held_out])))
    return Dataset(spec, Images(train, indices), held)


def split_images(
    spec: ImageSpec,
    get: Callable[[int], tuple[np.ndarray, int | None]],
    indices: np.ndarray,
    config: Data,
) -> Dataset:
    """Holds out a fraction of the examples, chosen by `data.split_seed`."""
    order = np.random.default_rng(config.split_seed).permutation(indices)
    held_out = round(config.validation_fraction * len(order))
    if not held_out or held_out == len(order):
        raise UserError(
            f"data.validation_fraction={config.validation_fraction} of {len(order)} images leaves"
            " nothing to train on or nothing to hold out"
        )
    train = order[held_out:]
    train = train[: config.limit or len(train)]
    return Dataset(spec, Images(get, train), Images(get, order[:held_out]))


def text_dataset(train: list[str], held_out: list[str] | None, config: Data) -> Dataset:
    """Documents as windows of tokens; held out by document where the source has no split."""
    if not any(d.strip() for d in train):
        raise UserError(f"the text of data.source='{config.source}' is empty")
    if held_out is None:
        train, held_out = split_documents(train, config.validation_fraction, config.split_seed)
    train = train[: config.limit or len(train)]
    tokenizer = make_tokenizer(config.tokenizer, [*train, *held_out])
    streams = [join(part, tokenizer) for part in (train, held_out)]
    for what, stream in zip(("training", "held-out"), streams, strict=True):
        if len(stream) <= config.seq_len:
            raise UserError(
                f"the {what} text of data.source='{config.source}' has {len(stream)} tokens, too"
                f" short for windows of data.seq_len={config.seq_len}: add text or lower"
                " data.seq_len"
            )
    return Dataset(
        TextSpec(tokenizer, config.seq_len),
        Windows(streams[0], config.seq_len),
        # Half of each held-out window is context, so that no token is judged with little of it.
        Windows(streams[1], config.seq_len, stride=max(config.seq_len // 2, 1)),
        {"train": train, "validation": held_out},
    )
