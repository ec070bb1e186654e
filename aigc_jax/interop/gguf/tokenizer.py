"""Tokenizer in a GGUF file's metadata: byte-level BPE of GPT-2, SmolLM, Qwen and Llama 3.

A GGUF file names the rule that splits text before the merges; the rules are here.
"""

from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.modalities.text.hf_tokenizer import checked

CONTROL, USER_DEFINED = 3, 4  # token types that merges never produce
# Metadata key → role; "eot" ends a turn, in addition to the token that ends a text.
ROLES = {
    "bos": "bos",
    "eos": "eos",
    "eot": "eos",
    "padding": "pad",
    "unknown": "unk",
    "mask": "mask",
}
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# A pattern that splits the text, or "digits", or "gpt2": the built-in pattern of GPT-2.
RULES = {
    "gpt-2": ("gpt2",),
    "smollm": ("digits", "gpt2"),
    "qwen2": (rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}",),
    "llama-bpe": (rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}",),
}
IGNORE_MERGES = ("llama-bpe",)  # a word that is a token is not split by the merges
NFC = ("qwen2",)  # text is normalised to Unicode NFC first
ADD_BOS = ("llama-bpe",)  # texts begin with bos unless the file says otherwise


def read_gguf_tokenizer(
    metadata: Mapping[str, Any], vocab_size: int, where: str
) -> tuple[Any, dict[str, Any]]:
    """Returns a `tokenizers.Tokenizer` and the ids of special tokens by role (`ImportedText`).

    Args:
      metadata: of the file.
      vocab_size: rows of the model's embedding, an upper bound of the ids.
      where: the file, for messages.

    Raises:
      UserError: if its kind is not supported, or it is broken.
    """
    model, rule = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if model != "gpt2" or not isinstance(rule, str) or rule not in RULES:
        raise UserError(
            f"{where} has a tokenizer of the kind {shorten(model, 40)!r} with the rule"
            f" {shorten(rule, 40)!r}, which is not supported: only gpt2 with {', '.join(RULES)} is"
        )
    tokens, merges, kinds = (
        _listed(metadata, key, kind, where)
        for key, kind in (("tokens", str), ("merges", str), ("token_type", int))
    )
    if not tokens or len(set(tokens)) != len(tokens) or len(tokens) > vocab_size:
        raise UserError(
            f"{where} has a vocabulary of {len(tokens)} tokens, {len(set(tokens))} of them"
            f" different, for {vocab_size} embeddings: it is broken"
        )
    specials: dict[str, Any] = {}
    for key, role in ROLES.items():
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(i) is int and 0 <= i < len(tokens):
            specials[role] = [specials["eos"], i] if key == "eot" and "eos" in specials else i
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", rule in ADD_BOS)
    try:
        with checked():
            tokenizer = _build(tokens, merges, kinds, rule)
            if add_bos is True and "bos" in specials:
                _add_prefix(tokenizer, tokens[specials["bos"]], specials["bos"])
    except ValueError as e:
        raise UserError(f"{where} has a broken tokenizer: {one_line(e)}") from e
    return tokenizer, specials


def _listed(metadata: Mapping[str, Any], key: str, kind: type, where: str) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise UserError(
            f"{where} has a broken tokenizer: its {key} are not a list of {kind.__name__}"
        )
    return values


def _build(tokens: list[str], merges: list[str], kinds: list[int], rule: str) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    pairs: list[Any] = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("a merge is not of two tokens")
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab, pairs, ignore_merges=rule in IGNORE_MERGES))
    steps: list[Any] = []
    for step in RULES[rule]:
        if step == "digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != "gpt2":
            steps.append(pre_tokenizers.Split(Regex(step), behavior="isolated"))
    built_in = RULES[rule][-1] == "gpt2"
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=built_in))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if rule in NFC:
        tokenizer.normalizer = normalizers.NFC()
    marked = list(zip(tokens, kinds, strict=False))
    control = [AddedToken(t, normalized=False, special=True) for t, k in marked if k == CONTROL]
    user = [AddedToken(t, normalized=False) for t, k in marked if k == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(user)
    return tokenizer


def _add_prefix(tokenizer: Any, token: str, i: int) -> None:
    """Makes every text begin with a token."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, i)]
    )
