"""Reads a tokenizer from an untrusted tokenizer.json or Hugging Face folder.

The folder's other files define the tokens that end a text; no code in them is run.
"""

import json
import os
from typing import Any

import tokenizers

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.core.files import check_memory, file_size, open_file
from aigc_jax.modalities.text.hf_tokenizer import (
    END,
    IM_END,
    LibraryTokenizer,
    checked,
    parse_tokenizer,
    vocabulary_of,
    without_truncation,
)

TOKENIZER = "tokenizer.json"
NAMED = ("tokenizer_config.json", "special_tokens_map.json")  # special tokens by their text
NUMBERED = ("config.json", "generation_config.json")  # by their ids
ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")  # of special tokens
# Common end-of-text tokens by priority, if no file defines one.
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "[SEP]", IM_END)
MASKS = ("[MASK]", "<mask>")

Settings = dict[str, dict[str, Any]]  # the content of each file of the folder


def read_tokenizer(path: str) -> LibraryTokenizer:
    """Reads the tokenizer of a file or folder.

    Raises:
      UserError: if it is missing or invalid.
    """
    path = os.path.expanduser(path)
    folder = os.path.isdir(path)
    file = os.path.join(path, TOKENIZER) if folder else path
    if folder and not os.path.exists(file):
        raise UserError(
            f"{shorten(path)} has no {TOKENIZER}: save the model's fast tokenizer there with"
            " save_pretrained of transformers"
        )
    text = _text(file)
    settings = {name: _settings(path, name) for name in NAMED + NUMBERED} if folder else {}
    try:
        return with_settings(parse_tokenizer(text), settings)
    except ValueError as e:
        raise UserError(
            f"{shorten(file)} is not a valid tokenizer ({one_line(e)}): use another file"
        ) from e


def with_settings(library: tokenizers.Tokenizer, settings: Settings) -> LibraryTokenizer:
    """Adds the special tokens of the settings; ValueError if no token ends a text."""
    size = max(vocabulary_of(library).values()) + 1
    names = [_name(settings.get(file, {}), "eos_token") for file in NAMED]
    ends = [i for name in names if name and (i := library.token_to_id(name)) is not None]
    ends += [i for file in NUMBERED for i in _ids(settings.get(file, {}), "eos_token_id", size)]
    known = [i for name in ENDS if (i := library.token_to_id(name)) is not None]
    if not ends and not known:
        raise ValueError("no token ends a text: use a folder with a tokenizer_config.json")
    separator = ends[0] if ends else known[0]
    turn, end = library.token_to_id(IM_END), library.token_to_id(END)
    if separator == turn and end is not None:
        separator = end  # a chat model: its end token ends a turn, not a document
    masks = [*(_name(settings.get(file, {}), "mask_token") for file in NAMED), *MASKS]
    mask = [i for name in masks if name and (i := library.token_to_id(name)) is not None]
    prefix, suffix = _affixes(library)
    return LibraryTokenizer(
        library,
        separator=separator,
        stops=[separator, *ends, *([] if turn is None else [turn])],
        prefix=prefix or _start(library, settings),
        suffix=suffix,
        mask=mask[0] if mask else None,
    )


def roles(folder: str, library: tokenizers.Tokenizer) -> dict[str, int]:
    """Returns ids of the special tokens defined in the folder's files, by role such as "mask"."""
    found: dict[str, int] = {}
    for settings in (_settings(folder, file) for file in NAMED):
        for role in ROLES:
            name = _name(settings, f"{role}_token")
            i = library.token_to_id(name) if name else None
            if i is not None:
                found.setdefault(role, i)
    return found


def _affixes(library: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Returns the tokens that the post-processor adds before and after a text."""
    with checked():
        without_truncation(library)  # padding in particular
        for text in ("a", "0", ""):
            encoding = library.encode(text, add_special_tokens=True)
            ids, special = encoding.ids, encoding.special_tokens_mask
            if 0 in special:
                first, last = special.index(0), len(special) - special[::-1].index(0)
                return ids[:first], ids[last:]
    return ids, []


def _start(library: tokenizers.Tokenizer, settings: Settings) -> list[int]:
    """Returns the token at the start of a text if it is defined in the settings only."""
    asked = settings.get(NAMED[0], {}).get("add_bos_token") is True
    names = [_name(settings.get(file, {}), "bos_token") for file in NAMED] if asked else []
    found = [i for name in names if name and (i := library.token_to_id(name)) is not None]
    return found[:1]


def _name(settings: dict[str, Any], key: str) -> str | None:
    """Returns a special token's text, stored as a string or as an object with "content"."""
    value = settings.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {shorten(value, 40)}")
    return value


def _ids(settings: dict[str, Any], key: str, size: int) -> list[int]:
    """Returns the token or tokens under a key, without those outside the vocabulary."""
    value = settings.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in values):
        raise ValueError(f"{key} is {shorten(value, 40)}")
    return [i for i in values if 0 <= i < size]


def _settings(folder: str, name: str) -> dict[str, Any]:
    """Reads the JSON object in a file of the folder; {} if the file does not exist."""
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return {}
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as e:
        raise UserError(f"{shorten(path)} is not JSON ({one_line(e)})") from e
    if not isinstance(value, dict):
        raise UserError(f"{shorten(path)} is not a JSON object")
    return value


def _text(path: str) -> str:
    with open_file(path) as f:
        check_memory(10 * file_size(f), f"the tokenizer in {shorten(path)}")
        try:
            return f.read().decode("utf-8")
        except UnicodeDecodeError as e:
            raise UserError(f"{shorten(path)} is not UTF-8 text ({one_line(e)})") from e
