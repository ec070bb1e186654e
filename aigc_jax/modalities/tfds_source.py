"""TFDS data sets as raw examples: images are read lazily, text into memory or streamed."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, did_you_mean, one_line, shorten
from aigc_jax.core.files import is_remote
from aigc_jax.data.lines import parse_json
from aigc_jax.data.raw_dataset import ColumnarExamples, Example, LazyExamples, RawDataset
from aigc_jax.data.split import held_out_split
from aigc_jax.data.tfds_folder import (
    check_classes,
    check_folder,
    check_name,
    find_folder,
    folders,
)
from aigc_jax.data.tfds_records import TfdsRecords
from aigc_jax.modalities.image.tfds_images import check_images, decode_tfds_image
from aigc_jax.modalities.text.chat_format import check_messages
from aigc_jax.modalities.text.conll import check_sentence
from aigc_jax.modalities.text.document_formats import DOCUMENT_FORMATS

# Names of TFDS features: images, text, and the JSON that `aigc prepare` writes.
IMAGE_KEY, LABEL_KEY, TEXT_KEY = "image", "label", "text"
MESSAGES_KEY, WORDS_KEY, TAGS_KEY = "messages", "words", "tags"
DECODERS = {IMAGE_KEY: decode_tfds_image}
STORES = ("gs://", "s3://")  # supported object stores


def tfds_content(name: str, config: Data) -> RawDataset:
    """Opens a TFDS data set (ArrayRecord, without TensorFlow) from an untrusted folder.

    Args:
      name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.
      config: the section `data`.

    Raises:
      UserError: if there is no such data set, or it is damaged or unsupported.
    """
    folder = _data_set_folder(name, config)
    with readable(name, config):
        check_folder(find_folder(name, folder))
        builder = _builder(find_folder(name, folder))
        counts = {s: split.num_examples for s, split in builder.info.splits.items()}
    features, where = builder.info.features, f"the data set '{name}'"
    if not counts.get("train"):
        raise UserError(
            f"the data set '{name}' has no training examples: it has {shorten(counts or 'none')}"
        )
    used = _used_features(name, features, config)
    with readable(name, config):
        if IMAGE_KEY in used:
            check_images(features, where)
        check_classes({key: features[key] for key in used}, where)
        held_out = held_out_split(counts)
        records = {
            s: TfdsRecords(builder, s, used, where, config.shuffle_window, DECODERS)
            for s in ("train", held_out)
            if s
        }
        for source in records.values():
            source[0]
        label = features[LABEL_KEY] if LABEL_KEY in used else None
        names = tuple(getattr(label, "names", None) or ())
        if IMAGE_KEY in used:
            keys = used if names else used[:1]
            images = {s: LazyExamples(_picker(r, keys), len(r), r.ends) for s, r in records.items()}
            return RawDataset(images, tuple(features[IMAGE_KEY].shape), names)
        size = sum(builder.info.splits[s].num_bytes for s in records)
        streamed = size > config.in_memory and config.format in DOCUMENT_FORMATS
        texts = {s: (_unread if streamed else _texts)(r, where) for s, r in records.items()}
    kind = used[0] if used[0] in (MESSAGES_KEY, WORDS_KEY) else "text"
    unlabelled = f"it has no classes under '{LABEL_KEY}'"
    return RawDataset(texts, None, names, kind, unlabelled, streamed=streamed)


def _used_features(name: str, features: Any, config: Data) -> list[str]:
    """Returns the features to read; the first one determines the kind of the data set."""
    found = next((k for k in (IMAGE_KEY, TEXT_KEY, MESSAGES_KEY, WORDS_KEY) if k in features), None)
    if found is None or (found == WORDS_KEY and TAGS_KEY not in features):
        raise UserError(
            f"the data set '{name}' has neither an '{IMAGE_KEY}' nor a '{TEXT_KEY}' feature:"
            f" it has {shorten(', '.join(features))}"
        )
    if found == WORDS_KEY:
        return [WORDS_KEY, TAGS_KEY]
    labelled = found == IMAGE_KEY or (found == TEXT_KEY and config.format == "labels")
    return [found, LABEL_KEY] if labelled and LABEL_KEY in features else [found]


def _picker(records: TfdsRecords, keys: Sequence[str]) -> Callable[[int], Example]:
    def pick(i: int) -> Example:
        record = records[i]
        return {key: record[key] for key in keys}

    return pick


def _texts(records: TfdsRecords, where: str) -> LazyExamples:
    """Reads all examples of a split of text."""
    rows = [_plain(record, f"record {i} of {where}") for i, record in enumerate(records)]
    return ColumnarExamples(**{key: [row[key] for row in rows] for key in rows[0]})


def _unread(records: TfdsRecords, where: str) -> LazyExamples:
    """Returns lazy examples of a split of text."""
    return LazyExamples(
        lambda i: _plain(records[i], f"record {i} of {where}"), len(records), records.ends
    )


def _plain(record: Example, where: str) -> Example:
    """Checks and parses an example of text, words or messages."""
    if MESSAGES_KEY in record:
        messages = parse_json(_text(record[MESSAGES_KEY]), where)
        return {"messages": check_messages({"messages": messages}, where, training=False)}
    if WORDS_KEY in record:
        listed, marks = (parse_json(_text(record[key]), where) for key in (WORDS_KEY, TAGS_KEY))
        words, tags = check_sentence(listed, marks, where)
        return {"words": words, "tags": tags}
    return {**record, "text": _text(record[TEXT_KEY])}


def _data_set_folder(name: str, config: Data) -> str:
    """Returns the folder of data sets after checking that it has one of this name."""
    check_name(name)
    folder, where = os.path.expanduser(config.data_dir), shorten(config.data_dir)
    write = f"write a data set there with aigc prepare --name={name} --data_dir={where}"
    if is_remote(folder):
        write = "copy a data set from aigc prepare there"
        if not folder.startswith(STORES):
            raise UserError(
                f"data.data_dir={where} cannot be read: set it to a folder, gs:// or s3://"
            )
    with reachable(folder):
        if not epath.Path(folder).is_dir():
            raise UserError(f"data.data_dir={where} is not a folder: {write}")
        if not epath.Path(folder, *name.split(":")[0].split("/")).is_dir():
            present = sorted(set(folders(folder)) - {"downloads"})
            hint = shorten(did_you_mean(name, present)) if present else "it is empty"
            raise UserError(
                f"there is no data set '{name}' in {where} ({hint}): aigc prepare --name={name}"
                " writes one"
            )
    return folder


@contextlib.contextmanager
def reachable(folder: str) -> Iterator[None]:
    """Turns exceptions of object stores and their libraries into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except ImportError as e:
        extra = "gcs" if folder.startswith("gs:") else "s3"
        raise UserError(
            f"data.data_dir={shorten(folder)} cannot be read ({one_line(e)}): pip install"
            f" aigc-jax[{extra}], or copy the data set to this machine"
        ) from e
    except Exception as e:  # each store has its own errors
        raise UserError(
            f"data.data_dir={shorten(folder)} cannot be reached ({one_line(e)}): check its"
            " name and your access to it"
        ) from e


def _builder(folder: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.core.read_only_builder.builder_from_directory(folder)


@contextlib.contextmanager
def readable(name: str, config: Data) -> Iterator[None]:
    """Turns exceptions of TFDS about a damaged data set into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        raise UserError(
            f"the data set '{name}' in {shorten(config.data_dir)} cannot be read"
            f" ({one_line(e)}): it must be complete and in ArrayRecord format"
        ) from e


def _text(value: Any) -> str:
    if not isinstance(value, (bytes, str)):
        raise ValueError(f"its text is {shorten(value, 80)}")
    return value.decode("utf-8") if isinstance(value, bytes) else value
