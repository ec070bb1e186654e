"""Where examples come from: embedded data sets, TFDS and own files."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from aigc_jax.config import Data
from aigc_jax.data import mixture, readers, stacked, streamed_forms
from aigc_jax.data.chat import check_messages
from aigc_jax.data.dataset import (
    Dataset,
    Files,
    Source,
    files_of,
    held_out_split,
    hold_out,
    limited,
)
from aigc_jax.data.forms import check_form, text_dataset, to_judge
from aigc_jax.data.readers.conll import check_sentence
from aigc_jax.data.readers.content import Columns, Content, Example, Examples, parse_json
from aigc_jax.data.spec import ImageSpec, TextSpec
from aigc_jax.data.tfds_folder import (
    Records,
    check_classes,
    check_folder,
    check_images,
    check_name,
    find_folder,
    folders,
)
from aigc_jax.data.tokenizers import Tokenizer
from aigc_jax.errors import UserError, nearest, reason, shown
from aigc_jax.files import is_remote

__all__ = ["Dataset", "Images", "Source", "load"]

# TFDS feature names of what is read: of images, of text, and of what `aigc prepare` writes as JSON.
IMAGE_KEY, LABEL_KEY, TEXT_KEY = "image", "label", "text"
MESSAGES_KEY, WORDS_KEY, TAGS_KEY = "messages", "words", "tags"
STORES = ("gs://", "s3://")  # where data sets can lie, besides folders


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
            f"there is no data.source '{shown(config.source)}': {nearest(shown(kind), known)}"
        )
    if content.image_shape is None:
        if judge is not None:
            dataset = text_dataset(to_judge(content, judge.class_names), config, tokenizer)
            return dataclasses.replace(dataset, texts={})  # no text was trained on
        return text_dataset(content, config, tokenizer)
    check_form(content, config)
    return image_dataset(content, levels, config)


def _own(config: Data) -> Content:
    return readers.read(
        config.source,
        text_field=config.text_field,
        label_field=config.label_field,
        option="data.source",
    )


def digits() -> tuple[Content, int]:
    """1,797 handwritten digits of 8×8 pixels and 17 grey levels, from scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    splits = {"train": Columns(image=images, label=found.target)}
    return Content(splits, images.shape[1:], tuple(map(str, found.target_names))), 17


def stacked_digits(config: Data) -> tuple[Content, int]:
    """55,000 images of 8×8 pixels with three of these digits each, one in each colour."""
    content, levels = digits()
    return stacked.stack(content, config), levels


def python_docs() -> tuple[Content, int]:
    """The language reference that comes with Python: 79 documents of about 6 kB."""
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    return Content({"train": Columns(text=documents)}), 0


def image_dataset(content: Content, levels: int, config: Data) -> Dataset:
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


# TFDS ----------------------------------------------------------------------------------------


def tfds_content(name: str, config: Data) -> Content:
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
        counts = {s: split.num_examples for s, split in builder.info.splits.items()}
    features, where = builder.info.features, f"the data set '{name}'"
    if not counts.get("train"):
        raise UserError(
            f"the data set '{name}' has no training examples: it has {shown(counts or 'none')}"
        )
    used = _used_features(name, features, config)
    with readable(name, config):
        if IMAGE_KEY in used:
            check_images(features, where)
        check_classes({key: features[key] for key in used}, where)
        held_out = held_out_split(counts)
        records = {
            s: Records(builder, s, used, where, config.window) for s in ("train", held_out) if s
        }
        for source in records.values():
            source[0]
        label = features[LABEL_KEY] if LABEL_KEY in used else None
        names = tuple(label.names) if hasattr(label, "names") else ()
        if IMAGE_KEY in used:
            keys = used if names else used[:1]
            images = {s: Examples(_picker(r, keys), len(r), r.ends) for s, r in records.items()}
            return Content(images, tuple(features[IMAGE_KEY].shape), names)
        size = sum(builder.info.splits[s].num_bytes for s in records)
        streamed = size > config.in_memory and config.form in streamed_forms.FORMS
        texts = {s: (_unread if streamed else _texts)(r, where) for s, r in records.items()}
    holds = used[0] if used[0] in (MESSAGES_KEY, WORDS_KEY) else "text"
    unlabelled = f"it has no classes under '{LABEL_KEY}'"
    return Content(texts, None, names, holds, unlabelled, streamed=streamed)


def _used_features(name: str, features: Any, config: Data) -> list[str]:
    """Which features are read; the first tells what the data set holds."""
    found = next((k for k in (IMAGE_KEY, TEXT_KEY, MESSAGES_KEY, WORDS_KEY) if k in features), None)
    if found is None or (found == WORDS_KEY and TAGS_KEY not in features):
        raise UserError(
            f"the data set '{name}' has neither an '{IMAGE_KEY}' nor a '{TEXT_KEY}' feature:"
            f" it has {shown(', '.join(features))}"
        )
    if found == WORDS_KEY:
        return [WORDS_KEY, TAGS_KEY]
    labelled = found == IMAGE_KEY or (found == TEXT_KEY and config.form == "labels")
    return [found, LABEL_KEY] if labelled and LABEL_KEY in features else [found]


def _picker(records: Records, keys: Sequence[str]) -> Callable[[int], Example]:
    def pick(i: int) -> Example:
        record = records[i]
        return {key: record[key] for key in keys}

    return pick


def _texts(records: Records, where: str) -> Examples:
    """All examples of a split of text."""
    rows = [_plain(record, f"record {i} of {where}") for i, record in enumerate(records)]
    return Columns(**{key: [row[key] for row in rows] for key in rows[0]})


def _unread(records: Records, where: str) -> Examples:
    """The same, each read when it is asked for."""
    return Examples(
        lambda i: _plain(records[i], f"record {i} of {where}"), len(records), records.ends
    )


def _plain(record: Example, where: str) -> Example:
    """An example of text, words or messages; raises if it is none."""
    if MESSAGES_KEY in record:
        messages = parse_json(_text(record[MESSAGES_KEY]), where)
        return {"messages": check_messages({"messages": messages}, where, training=False)}
    if WORDS_KEY in record:
        lists = [parse_json(_text(record[key]), where) for key in (WORDS_KEY, TAGS_KEY)]
        words, tags = check_sentence(*lists, where)
        return {"words": words, "tags": tags}
    return {**record, "text": _text(record[TEXT_KEY])}


def _data_set_folder(name: str, config: Data) -> str:
    """The folder of data sets, in which there is one of this name."""
    check_name(name)
    folder, where = os.path.expanduser(config.data_dir), shown(config.data_dir)
    write = f"write a data set there with aigc prepare --name={name} --data_dir={where}"
    if is_remote(folder):
        write = "copy there what aigc prepare has written"
        if not folder.startswith(STORES):
            raise UserError(f"data.data_dir={where} cannot be read: name a folder, gs:// or s3://")
    with reachable(folder):
        if not epath.Path(folder).is_dir():
            raise UserError(f"data.data_dir={where} is not a folder: {write}")
        if not epath.Path(folder, *name.split(":")[0].split("/")).is_dir():
            present = sorted(set(folders(folder)) - {"downloads"})
            hint = shown(nearest(name, present)) if present else "it is empty"
            raise UserError(
                f"there is no data set '{name}' in {where} ({hint}): aigc prepare --name={name}"
                " writes one"
            )
    return folder


@contextlib.contextmanager
def reachable(folder: str) -> Iterator[None]:
    """Turns what object stores and their libraries raise into one sentence."""
    try:
        yield
    except UserError:
        raise
    except ImportError as e:
        extra = "gcs" if folder.startswith("gs:") else "s3"
        raise UserError(
            f"data.data_dir={shown(folder)} cannot be read ({reason(e)}): pip install"
            f" aigc-jax[{extra}], or copy the data set to this machine"
        ) from e
    except Exception as e:  # each store has its own errors
        raise UserError(
            f"data.data_dir={shown(folder)} cannot be reached ({reason(e)}): look at its name and"
            " your access to it"
        ) from e


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
