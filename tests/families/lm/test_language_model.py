"""Losses of language models by hand, for a model that is a table; what is hidden and filled in."""

import types

import chex
import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.hostile import refusal
from helpers.small_tokenizers import kind, trained
from helpers.table_model import (
    BYTE,
    HIDDEN,
    KEYS,
    LOG_P,
    LOG_Z,
    PARAMS,
    TOKENS,
    WEIGHT,
    B,
    T,
    Table,
    V,
    loss_of,
    masked,
)

from aigc_jax.families.lm.language_model import LanguageModel, LMConfig, LMSample
from aigc_jax.families.lm.masked_lm import MASK, MaskedLanguageModel, MaskedLMConfig, MaskedLMSample
from aigc_jax.modalities.text.hf_tokenizer import LibraryTokenizer

RNG = np.random.default_rng(1)

# Next token ----------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing, z_loss", [(0.0, 0.0), (0.3, 0.0), (0.2, 0.1)])
def test_the_loss_of_a_language_model_by_hand(smoothing, z_loss):
    objective = LanguageModel(LMConfig(z_loss, smoothing), Table(), BYTE)
    batch = {"tokens": TOKENS, "weight": WEIGHT}
    loss, metrics = loss_of(objective, batch)
    total, hits = 0.0, 0.0
    for b, t in np.ndindex(B, T):
        now, after = TOKENS[b, t], TOKENS[b, t + 1]
        target = np.full(V, smoothing / V)
        target[after] += 1 - smoothing
        total += WEIGHT[b, t] * (-target @ LOG_P[now] + z_loss * LOG_Z[now] ** 2)
        hits += WEIGHT[b, t] * (LOG_P[now].argmax() == after)
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    np.testing.assert_allclose(loss.weight, WEIGHT.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"].total, hits, rtol=1e-6)
    # What is reported of held-out text is the plain likelihood, a sum for each example.
    found = objective.evaluate(PARAMS, {}, batch, KEYS)["loss"]
    nats = -LOG_P[TOKENS[:, :-1], TOKENS[:, 1:]] * WEIGHT
    np.testing.assert_allclose(found.total, nats.sum(1), rtol=1e-5)
    np.testing.assert_allclose(found.weight, WEIGHT.sum(1), rtol=1e-6)


def test_a_target_without_weight_changes_nothing():
    """The last token is no context; even an impossible one leaves the loss as it is."""
    objective = LanguageModel(LMConfig(label_smoothing=0.1), Table(), BYTE)
    weight = WEIGHT.copy()
    weight[:, -1] = 0
    changed = TOKENS.copy()
    changed[:, -1] = 7
    first, second = (
        loss_of(objective, {"tokens": tokens, "weight": weight}) for tokens in (TOKENS, changed)
    )
    chex.assert_trees_all_equal(first, second)
    assert float(first[0].total) != float(
        loss_of(objective, {"tokens": changed, "weight": WEIGHT})[0].total
    )


def test_bits_per_byte_of_a_tokenizer_with_long_tokens():
    """Bits over the bytes of the text, whatever the tokens; separators cost bits only."""
    tokenizer, text = trained(), "the cat sat on the mat, 人工智能 café"
    tokens = [tokenizer.separator, *tokenizer.encode(text), tokenizer.separator]
    assert len(tokens) < len(text.encode())
    model = Table()
    model.vocab_size = tokenizer.size + 5  # filled up, as embeddings are
    objective = LanguageModel(LMConfig(), model, tokenizer)
    nats = RNG.uniform(size=len(tokens) - 1).astype(np.float32)
    likelihood = types.SimpleNamespace(nats=nats[None], correct=nats[None])
    objective._likelihood = lambda params, batch, keys: (batch["tokens"][:, 1:], likelihood)
    batch = {"tokens": np.array([tokens]), "weight": np.ones((1, len(tokens) - 1), np.float32)}
    found = objective.evaluate({}, {}, batch, None)["bits_per_byte"]
    np.testing.assert_allclose(found.weight, [len(text.encode())])
    np.testing.assert_allclose(
        found.value(), [nats.sum() / np.log(2) / len(text.encode())], rtol=1e-6
    )
    batch["weight"][:] = 0.5  # halves of tokens are halves of bytes
    half = objective.evaluate({}, {}, batch, None)["bits_per_byte"]
    np.testing.assert_allclose(half.value(), found.value(), rtol=1e-6)


def test_texts_follow_their_prompts_and_end_before_stop_strings():
    objective = LanguageModel(LMConfig(), Table(), BYTE)
    rows = [BYTE.encode(text) for text in ("one END two", "three", "END", "a\n\nEND")]
    rows[1] = [*rows[1], BYTE.separator, 65]
    options = LMSample(prompts=("p", "q"), stop=("END", "\n\n"))
    assert objective.texts(rows, options) == ["pone ", "qthree", "p", "qa"]
    assert objective.texts(rows[:1], LMSample()) == ["one END two"]


def test_prompts_get_what_the_tokenizer_puts_in_front_and_are_cut_to_the_context():
    objective = LanguageModel(LMConfig(), Table(), BYTE)
    assert objective._encode("ab").tolist() == [256, 97, 98]
    assert objective._encode("").tolist() == [256]
    bare = LibraryTokenizer(kind("trained").to_library(), separator=0)
    objective.tokenizer = bare
    assert objective._encode("").tolist() == [0] and objective._encode("a").tolist() == [
        *bare.encode("a")
    ]
    long = np.arange(100)
    assert objective._fit(long, 500).tolist() == list(range(36, 100))
    objective = LanguageModel(LMConfig(), Table(bounded=True), BYTE)
    assert objective._fit(long[:60], 4).tolist() == list(range(60))
    message = refusal(objective._fit, long[:60], 5)
    assert "65 tokens" in message and "end at 64" in message


def test_a_language_model_needs_the_future_hidden():
    assert "model.causal=True" in refusal(LanguageModel, LMConfig(), Table(causal=False), BYTE)
    assert "model.causal=False" in refusal(
        MaskedLanguageModel, MaskedLMConfig(), Table(), BYTE, 257
    )
    assert "together above 1" in refusal(MaskedLMConfig, keep_rate=0.6, random_rate=0.5)


# Hidden tokens -------------------------------------------------------------------------------

NEIGHBOUR = Table(ahead=1, causal=False)


def test_number_of_masked_kept_and_replaced_tokens():
    objective = masked(mask_rate=0.3, keep_rate=0.2, random_rate=0.3)
    tokens = np.full((4, 20_000), 65)
    shown, chosen = map(
        np.asarray, objective.mask_tokens(tokens, jax.random.split(jax.random.key(1), 4))
    )
    assert (shown[~chosen] == 65).all()
    # 80,000 and 24,000 draws: standard errors of 0.002 and 0.003.
    assert abs(chosen.mean() - 0.3) < 0.01
    inside = shown[chosen]
    assert abs((inside == HIDDEN).mean() - 0.5) < 0.015
    assert abs((inside == 65).mean() - (0.2 + 0.3 / 257)) < 0.015
    others = inside[(inside != HIDDEN) & (inside != 65)]
    assert others.min() == 0 and others.max() == 256 and len(np.unique(others)) == 256
    plain, _ = masked(mask_rate=1.0, keep_rate=0.0, random_rate=0.0).mask_tokens(
        tokens[:, :50], KEYS[:4]
    )
    assert (plain == HIDDEN).all()


def test_masking_depends_on_the_example_only():
    objective = masked(mask_rate=0.5)
    whole = objective.mask_tokens(TOKENS, KEYS)
    part = objective.mask_tokens(TOKENS[2:4], KEYS[2:4])
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[2:4], whole), part)
    assert len(np.unique(np.asarray(whole[1]), axis=0)) == B


def test_the_loss_of_a_masked_model_by_hand():
    """Of hidden tokens with weight, given what is shown; the first token of a text has none."""
    objective = masked(mask_rate=0.6, label_smoothing=0.1, z_loss=0.2)
    loss, metrics = loss_of(objective, {"tokens": TOKENS, "weight": WEIGHT})
    shown, chosen = map(np.asarray, objective.mask_tokens(TOKENS[:, :-1], KEYS))
    total = weight = hits = 0.0
    for b, t in np.ndindex(B, T):
        w = chosen[b, t] * (WEIGHT[b, t - 1] if t else 0)
        row, token = LOG_P[shown[b, t]], TOKENS[b, t]
        nats = -0.9 * row[token] - 0.1 * row.mean() + 0.2 * LOG_Z[shown[b, t]] ** 2
        total, weight, hits = total + w * nats, weight + w, hits + w * (row.argmax() == token)
    assert weight > 0
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    np.testing.assert_allclose(loss.weight, weight, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"].total, hits, rtol=1e-6)
    found = objective.evaluate(PARAMS, {}, {"tokens": TOKENS, "weight": WEIGHT}, KEYS)["loss"]
    np.testing.assert_allclose(found.weight.sum(), weight, rtol=1e-6)


def test_masks_are_filled_the_surest_first():
    """Each token is sure once the one behind it is known: from right to left."""
    table = np.zeros((V, V), np.float32)
    table[HIDDEN, [ord("?"), HIDDEN]] = 3, 9  # unsure, and the mask itself would be the likeliest
    table[np.arange(1, 256), np.arange(0, 255)] = 50  # before "d" comes "c"
    objective = masked(NEIGHBOUR)
    options = MaskedLMSample(num=2, prompts=(f"x{MASK * 3}d", f"{MASK}A"), temperature=0.0)
    rows = tiny.draw(objective, {"model": {"logits": table}}, {}, options, 5)
    assert objective.texts(rows, options) == ["xabcd", "@A", "xabcd", "@A", "xabcd"]
    assert rows[0, :6].tolist() == [BYTE.separator, *b"xabcd"]


def test_a_mask_is_never_the_surest_token():
    """Else the first one here would be filled before the second, which tells what it is."""
    table = np.zeros((V, V), np.float32)
    table[HIDDEN, HIDDEN], table[ord("A"), ord("@")], table[ord("@"), ord("x")] = 13, 10, 50
    objective, options = masked(NEIGHBOUR), MaskedLMSample(prompts=(f"{MASK * 2}A",))
    rows = tiny.draw(objective, {"model": {"logits": table}}, {}, options, 5)
    assert set(objective.texts(rows, options)) == {"x@A"}


def test_only_masks_are_filled_and_each_row_from_its_own_key():
    objective = masked(NEIGHBOUR)
    params = {"model": {"logits": PARAMS["model"]["logits"]}}
    options = MaskedLMSample(prompts=(f"a{MASK}b{MASK}{MASK}c",))
    draw = lambda **kw: tiny.draw(objective, params, {}, options, 5, **kw)  # noqa: E731
    rows = draw()
    assert not (rows == HIDDEN).any()
    given = [0, 1, 3, 6]
    assert (rows[:, given] == [BYTE.separator, *b"abc"]).all()
    assert len(np.unique(rows[:, [2, 4, 5]])) > 5
    np.testing.assert_array_equal(rows, draw(batch_size=2))
    assert all(text.startswith("a") for text in objective.texts(rows, options))


def test_a_prompt_that_does_not_fit_is_refused():
    options = MaskedLMSample(prompts=(MASK * 64,))
    assert "a prompt has 65 tokens" in refusal(tiny.draw, masked(), PARAMS, {}, options, 1)
