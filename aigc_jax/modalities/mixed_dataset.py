"""Mixtures of data sets by weight: `data.source=mix:0.7*tfds:a,0.3*tfds:b`."""

import dataclasses
import math
import re
from collections.abc import Callable
from fractions import Fraction

from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.core.modality import Spec
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.mixture import MAX_WEIGHT, MixedSource

KIND = "mix"
PART = re.compile(r"(?:^|,)(\d+\.?\d*|\.\d+)\*")  # start of a part; paths may have commas
LEARNED = ("bpe", "char")


def parse_mixture(source: str) -> list[tuple[int, str]]:
    """Parses `mix:WEIGHT*SOURCE,WEIGHT*SOURCE,…` into integer weights and sources.

    Raises:
      UserError: if it is not of this form.
    """
    text = source.partition(":")[2]
    starts = list(PART.finditer(text))
    ends = [*(m.start() for m in starts[1:]), len(text)][: len(starts)]
    found = [
        (Fraction(m[1]), text[m.end() : end].strip()) for m, end in zip(starts, ends, strict=True)
    ]
    form = f"{KIND}:0.7*tfds:a,0.3*tfds:b"
    if not found or starts[0].start() or not all(name for _, name in found):
        raise UserError(f"data.source='{shorten(source)}' is not a mixture: write {form}")
    for weight, name in found:
        if not weight:
            raise UserError(f"data.source gives '{shorten(name, 80)}' the weight 0: remove it")
        if name.startswith(f"{KIND}:"):
            raise UserError(
                f"data.source='{shorten(source)}' nests a mixture: write all parts in one"
            )
    scale = math.lcm(*(weight.denominator for weight, _ in found))
    integers = [int(weight * scale) for weight, _ in found]
    integers = [weight // math.gcd(*integers) for weight in integers]
    if sum(integers) > MAX_WEIGHT:
        raise UserError(
            f"the weights of data.source='{shorten(source)}' have too many digits: round them"
        )
    return [(weight, name) for weight, (_, name) in zip(integers, found, strict=True)]


def load_mixture(config: Data, read: Callable[[Data], Dataset]) -> Dataset:
    """Loads the mixture that `config.source` describes; held-out examples are concatenated.

    Args:
      config: the section `data`.
      read: loads a part.

    Raises:
      UserError: if the specs of the parts differ.
    """
    described = parse_mixture(config.source)
    parts = [read(dataclasses.replace(config, source=name)) for _, name in described]
    for (_, name), part in zip(described, parts, strict=True):
        _check_alike(described[0][1], parts[0].spec, name, part.spec, config)
    texts = {}
    if all(part.texts for part in parts):
        texts = {
            split: [t for part in parts for t in part.texts[split]] for split in parts[0].texts
        }
    return Dataset(
        parts[0].spec,
        MixedSource([part.train for part in parts], [weight for weight, _ in described]),
        MixedSource([part.validation for part in parts]),
        texts,
        [d for part in parts for d in part.dialogues],
    )


def _check_alike(first: str, one: Spec, name: str, other: Spec, config: Data) -> None:
    """Raises UserError with the first difference unless two parts have equal specs."""
    a, b = one.to_json(), other.to_json()
    different = next((key for key in (*a, *b) if a.get(key) != b.get(key)), None)
    if different is None:
        return
    if a["modality"] == b["modality"] == "text" and config.tokenizer in LEARNED:
        raise UserError(
            f"data.tokenizer={config.tokenizer} learns another vocabulary from each part of a"
            " mixture: use byte, file:FILE or workdir:DIR"
        )
    raise UserError(
        f"'{shorten(first, 80)}' and '{shorten(name, 80)}' cannot be mixed: their"
        f" {different.replace('_', ' ')} differ, {shorten(a.get(different), 80)} and"
        f" {shorten(b.get(different), 80)}"
    )
