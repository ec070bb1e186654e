"""The modality "text"."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import MODALITIES, Examples, Modality, Spec
from aigc_jax.modalities.text.eval_options import TextEval
from aigc_jax.modalities.text.sample_file import save_texts
from aigc_jax.modalities.text.spec import TASKS, TextSpec, text_spec_from_json
from aigc_jax.modalities.text.token_windows import TokenWindows
from aigc_jax.modalities.text.tokenizers import ByteTokenizer

SHAPE = re.compile(r"text(?::(\d+))?")
SYNTHETIC_TOKENS = 1 << 20


class TextModality(Modality):
    """Text as tokens, in one of several formats: see `TextSpec`."""

    name = "text"
    suffix = ".txt"
    unit = "tokens"
    metrics = (
        "aigc_jax.modalities.text.metrics.text_generation:TextGeneration",
        "aigc_jax.modalities.text.metrics.perplexity:Perplexity",
        "aigc_jax.modalities.text.metrics.classification:Classification",
    )
    eval_options = TextEval

    def spec_from_json(self, value: Mapping[str, Any]) -> TextSpec:
        return text_spec_from_json(value)

    def save(self, samples: Any, path: str) -> str:
        return save_texts(samples, path)

    def is_samples(self, samples: Any) -> bool:
        return isinstance(samples, list) and all(isinstance(text, str) for text in samples)

    def units_per_example(self, spec: Spec) -> int:
        assert isinstance(spec, TextSpec)
        return spec.seq_len

    def describe(self, spec: Spec) -> dict[str, Any]:
        assert isinstance(spec, TextSpec)
        return {"seq_len": spec.seq_len}

    def synthetic_spec(self, shape: str, config: Config) -> TextSpec | None:
        """Returns the spec of "text", or of "text:9" with nine classes, in the config's format.

        For an empty shape: text without classes.
        """
        format = config.data.format
        found = SHAPE.fullmatch(shape or "text")
        if not found or (not shape and format in TASKS):
            return None
        if (format in TASKS) != bool(found[1]):
            raise UserError(
                f"--synthetic={shape} does not suit data.format={format}: write text:CLASSES for"
                " labels or tags, text for other formats"
            )
        names = tuple(map(str, range(int(found[1] or 0))))
        return TextSpec(ByteTokenizer(), config.data.seq_len, format, names)

    def synthetic_data(
        self, spec: Spec, config: Config, rng: np.random.Generator
    ) -> tuple[Spec, Examples]:
        """Returns a stream of random tokens, for any format."""
        assert isinstance(spec, TextSpec)
        if spec.format in TASKS:
            raise UserError(f"--synthetic: there is no random text of data.format={spec.format}")
        entries = getattr(config.model, "vocab_size", 0) or spec.tokenizer.size
        count = max(SYNTHETIC_TOKENS, 2 * spec.seq_len)
        stream = rng.integers(0, entries, count).astype(np.int32)
        return TextSpec(spec.tokenizer, spec.seq_len), TokenWindows(stream, spec.seq_len)

    def resolve(self, config: Config) -> Config:
        """Returns the config with the size of the vocabulary as `model.vocab_size`.

        Raises:
          UserError: if only the tokenizer's file or the text itself determines it.
        """
        if getattr(config.model, "vocab_size", 1):
            return config
        sizes = {"byte": ByteTokenizer().size, "bpe": config.data.vocab_size}
        if config.data.tokenizer not in sizes:
            raise UserError(
                f"the vocabulary size of data.tokenizer={config.data.tokenizer} is unknown until"
                " it is read: set model.vocab_size"
            )
        size = max(sizes[config.data.tokenizer], 1)
        model = dataclasses.replace(config.model, vocab_size=size)
        return dataclasses.replace(config, model=model)


MODALITIES.register("text", TextModality())
