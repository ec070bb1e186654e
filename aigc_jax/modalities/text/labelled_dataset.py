"""Data sets of labelled texts, and of sentences with a tag per word."""

from collections.abc import Sequence

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import Example, RawDataset
from aigc_jax.data.split import held_out_split, hold_out, limit_train
from aigc_jax.distributed.main_process import log_main
from aigc_jax.modalities.text.labelled_text import Labelled, Tagged
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.token_store import text_parts
from aigc_jax.modalities.text.tokenizers import Tokenizer, make_tokenizer

OUTSIDE, INSIDE = "O", "I-"  # tag outside entities, prefix of tags inside entities


def labelled_dataset(raw: RawDataset, config: Data, ready: Tokenizer | None = None) -> Dataset:
    """Builds a data set of labelled texts (`data.format=labels`).

    Args:
      raw: raw examples.
      config: the section `data`.
      ready: replaces the tokenizer of `data.tokenizer`.

    Raises:
      UserError: if a split would be empty, or has a class that is not in the training split.
    """
    train, held_out = _split(raw, config, "texts")
    _check_labels(train, held_out, raw.class_names)
    train = limit_train(train, config)
    texts = [[example["text"] for example in part] for part in (train, held_out)]
    tokenizer = ready or _tokenizer(config, *texts)
    sources = [
        Labelled(part, [example["label"] for example in examples], tokenizer, config.seq_len)
        for part, examples in zip(texts, (train, held_out), strict=True)
    ]
    truncated = sum(source.truncated for source in sources)
    if truncated:
        log_main(
            f"{truncated} of {sum(map(len, sources))} texts are longer than"
            f" data.seq_len={config.seq_len} tokens and are truncated"
        )
    spec = TextSpec(tokenizer, config.seq_len, "labels", raw.class_names)
    return Dataset(spec, sources[0], sources[1])


def tagged_dataset(raw: RawDataset, config: Data, ready: Tokenizer | None = None) -> Dataset:
    """Builds a data set of sentences with a tag per word (`data.format=tags`).

    Args:
      raw: raw examples; its class names, if any, are the tags of a trained model.
      config: the section `data`.
      ready: replaces the tokenizer of `data.tokenizer`.

    Raises:
      UserError: if a split would be empty, or for an unknown tag.
    """
    train, held_out = _split(raw, config, "sentences")
    found = {tag for example in (*train, *held_out) for tag in example["tags"]}
    names = raw.class_names or (OUTSIDE, *sorted(found - {OUTSIDE}))
    if found - set(names):
        raise UserError(
            f"the model does not know the tag '{shorten(min(found - set(names)), 80)}': its tags"
            f" are {shorten(', '.join(names), 200)}"
        )
    number = {name: i for i, name in enumerate(names)}
    inside = frozenset(i for name, i in number.items() if name.startswith(INSIDE))
    train = limit_train(train, config)
    texts = [[" ".join(example["words"]) for example in part] for part in (train, held_out)]
    tokenizer = ready or _tokenizer(config, *texts)
    sources = [
        Tagged(
            [example["words"] for example in part],
            [[number[tag] for tag in example["tags"]] for example in part],
            tokenizer,
            config.seq_len,
            inside,
        )
        for part in (train, held_out)
    ]
    divided = sum(source.divided for source in sources)
    if divided:
        log_main(
            f"{divided} of {len(train) + len(held_out)} sentences are longer than"
            f" data.seq_len={config.seq_len} tokens and are split between words"
        )
    return Dataset(TextSpec(tokenizer, config.seq_len, "tags", names), sources[0], sources[1])


def _split(raw: RawDataset, config: Data, unit: str) -> tuple[list[Example], list[Example]]:
    """Returns training and held-out examples."""
    own = held_out_split(raw.splits)
    every = [example() for example in raw.splits["train"]]
    if own is not None:
        return every, [example() for example in raw.splits[own]]
    train, held_out = hold_out(len(every), config, unit)
    return [every[i] for i in train], [every[i] for i in held_out]


def _check_labels(train: list[Example], held_out: list[Example], names: Sequence[str]) -> None:
    """Raises UserError for a class without training examples."""
    known = {int(example["label"]) for example in train}
    unknown = {int(example["label"]) for example in held_out} - known
    if unknown:
        raise UserError(
            f"the label '{shorten(names[min(unknown)], 80)}' occurs only in held-out texts: add"
            " training texts with it, or change data.split_seed"
        )


def _tokenizer(config: Data, train: Sequence[str], held_out: Sequence[str]) -> Tokenizer:
    """Makes the tokenizer: BPE learned from the training text, char from all text."""
    if config.tokenizer == "bpe":
        parts = [part for text in train for part in text_parts(text)]
        return make_tokenizer(config.tokenizer, parts, config.vocab_size)
    return make_tokenizer(config.tokenizer, [*train, *held_out], config.vocab_size)
