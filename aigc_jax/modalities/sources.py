"""Loads the data set of `data.source`.

A source is a function of its argument (what follows the colon) and the config; it is registered in
`DATA_SOURCES`, by an entry point, or given as an import path `package.module:NAME`.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.core.modality import Spec
from aigc_jax.core.registry import Registry, is_import_path
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset
from aigc_jax.modalities import mixed_dataset, readers
from aigc_jax.modalities.dataset_builders import build_dataset
from aigc_jax.modalities.image.stacked_digits import stack_digits
from aigc_jax.modalities.in_memory import IN_MEMORY, no_data_given, raw_dataset_from_python
from aigc_jax.modalities.text.tokenizers import Tokenizer
from aigc_jax.modalities.tfds_source import tfds_content

# (argument, config) → examples: a `RawDataset`, or anything that `raw_dataset_from_python` accepts.
DataSource = Callable[[str, Data], Any]

DATA_SOURCES: Registry[DataSource] = Registry(
    "data_source", "data.source", {IN_MEMORY: no_data_given}
)


@DATA_SOURCES.decorator("digits")
def digits(argument: str, config: Data) -> RawDataset:
    """Loads 1,797 handwritten digits of 8×8 pixels and 17 grey levels, from scikit-learn."""
    from sklearn.datasets import load_digits

    _check_no_argument(argument, config)
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    splits = {"train": ColumnarExamples(image=images, label=found.target)}
    names = tuple(map(str, found.target_names))
    return RawDataset(splits, images.shape[1:], names, levels=17)


@DATA_SOURCES.decorator("stacked_digits")
def stacked_digits(argument: str, config: Data) -> RawDataset:
    """Loads 55,000 images of 8×8 pixels with a random digit in each of three channels."""
    return stack_digits(digits(argument, config), config)


@DATA_SOURCES.decorator("python_docs")
def python_docs(argument: str, config: Data) -> RawDataset:
    """Loads the language reference that Python ships: 79 documents of about 6 kB."""
    from pydoc_data.topics import topics

    _check_no_argument(argument, config)
    documents = [topics[name] for name in sorted(topics)]
    return RawDataset({"train": ColumnarExamples(text=documents)})


@DATA_SOURCES.decorator("tfds")
def tfds(argument: str, config: Data) -> RawDataset:
    """Loads a TFDS data set by name."""
    if not argument:
        raise UserError("data.source=tfds: lacks the name of a data set: write tfds:NAME")
    return tfds_content(argument, config)


def load_source(
    config: Data, tokenizer: Tokenizer | None = None, trained: Spec | None = None
) -> Dataset:
    """Loads the data set of `config.source`.

    Args:
      config: the section `data`.
      tokenizer: replaces that of `config.tokenizer`.
      trained: spec of a trained model to be evaluated on other data: then all examples are held
        out, unless the source has a held-out split.

    Raises:
      UserError: if there is no such source, or it is empty, too short, or its shapes differ.
    """
    if config.source.partition(":")[0] == mixed_dataset.KIND:
        return mixed_dataset.load_mixture(
            config, lambda part: load_source(part, tokenizer, trained)
        )
    return build_dataset(read_source(config), config, tokenizer, trained)


def read_source(config: Data) -> RawDataset:
    """Reads the raw examples of `config.source`, unless it is a mixture.

    Raises:
      UserError: if there is no such source, or it cannot be read.
    """
    kind, _, argument = config.source.partition(":")
    if kind in DATA_SOURCES.names():
        return raw_dataset_from_python(DATA_SOURCES[kind](argument, config))
    if kind in readers.READERS.names() and argument:
        return readers.read_files(
            config.source,
            text_field=config.text_field,
            label_field=config.label_field,
            option="data.source",
        )
    attribute, _, rest = argument.partition(":")
    if is_import_path(f"{kind}:{attribute}") and _may_be_module(kind):
        return raw_dataset_from_python(DATA_SOURCES[f"{kind}:{attribute}"](rest, config))
    raise UserError(
        f"there is no data.source '{shorten(config.source)}':"
        f" {did_you_mean(shorten(kind), _known())}"
    )


def _may_be_module(name: str) -> bool:
    """Returns whether the name can be a module's, rather than a misspelt kind of source."""
    return "." in name or importlib.util.find_spec(name) is not None


def _known() -> list[str]:
    """Returns the forms of sources, for messages."""
    own = [name + (":NAME" if name == "tfds" else "") for name in DATA_SOURCES.names()]
    files = [f"{kind}:PATH" for kind in readers.READERS.names()]
    return [*own, *files, f"{mixed_dataset.KIND}:0.7*SOURCE,0.3*SOURCE", "package.module:NAME"]


def _check_no_argument(argument: str, config: Data) -> None:
    if argument:
        raise UserError(
            f"there is no data.source '{shorten(config.source)}': write"
            f" {config.source.partition(':')[0]}"
        )
