"""What data look like that are not here: from a few words, or from the config alone."""

import dataclasses
import re

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.modalities.spec import TASKS, ImageSpec, Spec, TextSpec
from aigc_jax.modalities.text.tokenizers import ByteTokenizer

IMAGES = re.compile(r"(latents:)?(\d+)x(\d+)x(\d+)(?::(\d+))?")
TEXT = re.compile(r"text(?::(\d+))?")


def spec_of(shape: str, config: Config) -> Spec:
    """The spec of data that are described in a few words.

    Args:
      shape: "text", or "text:9" with nine classes or tags; "32x32x3" or "32x32x3:10" (height,
        width, channels and classes), with "latents:" before it for an autoencoder's latents.
      config: whose text it is: `data.seq_len` tokens in `data.format`.

    Raises:
      UserError: if it is none of these.
    """
    text, image = TEXT.fullmatch(shape), IMAGES.fullmatch(shape)
    format, length = config.data.format, config.data.seq_len
    if text and (format in TASKS) == bool(text[1]):
        return TextSpec(ByteTokenizer(), length, format, _names(text[1]))
    if not image or not all(int(n) for n in image.groups()[1:4]):
        raise UserError(
            f"--synthetic={shape} is no shape of data: write text (text:CLASSES for data.format="
            "labels or tags), or height, width and channels as in 32x32x3, and classes behind them"
            " as in 32x32x3:10"
        )
    latents, height, width, channels, classes = image.groups()
    size = int(height), int(width), int(channels)
    return ImageSpec(size, _names(classes), continuous=bool(latents))


def _names(count: str | None) -> tuple[str, ...]:
    return tuple(map(str, range(int(count or 0))))


def with_vocabulary(config: Config) -> Config:
    """The config of a text model with the size of its vocabulary written out; nothing is read.

    Raises:
      UserError: if only the tokenizer's file or the text itself would tell it.
    """
    model, data = config.model, config.data
    if getattr(model, "vocab_size", 1):
        return config
    sizes = {"byte": ByteTokenizer().size, "bpe": data.vocab_size}
    if data.tokenizer not in sizes:
        raise UserError(
            f"the entries of data.tokenizer={data.tokenizer} are not in the config: give their"
            " number as model.vocab_size"
        )
    model = dataclasses.replace(model, vocab_size=max(sizes[data.tokenizer], 1))
    return dataclasses.replace(config, model=model)
