"""Losses of classes and tags by hand, for a model that is a table; microbatches of all losses."""

import chex
import jax
import numpy as np
import pytest
from helpers import tiny
from helpers.hostile import refusal
from helpers.table_model import (
    BYTE,
    KEYS,
    LOG_P,
    PARAMS,
    STEP,
    TOKENS,
    WEIGHT,
    B,
    T,
    Table,
    V,
    loss_of,
    masked,
)

from aigc_jax.families.lm.language_model import LanguageModel, LMConfig
from aigc_jax.families.lm.text_task import TaskConfig, TaskSample, TextClassification, TokenTagging
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.training.step import gradients

RNG = np.random.default_rng(2)

# Classes and tags ----------------------------------------------------------------------------

CLASSES = ("no", "yes", "maybe")
LENGTHS = np.array([7, 3, 1, 5, 2, 4])
LABELS = {
    "tokens": TOKENS,
    "segments": (np.arange(T + 1) < LENGTHS[:, None]).astype(np.int32),
    "label": RNG.integers(0, 3, B).astype(np.int32),
    "weight": np.array([1.5, 0.3, 1, 0, 2, 1], np.float32),
}
TAGS = {k: v for k, v in LABELS.items() if k != "label"}
TAGS["tags"] = np.where(LABELS["segments"][:, :-1] * (RNG.uniform(size=(B, T)) < 0.6),
                        RNG.integers(0, 3, (B, T)), -1).astype(np.int32)  # fmt: skip
TAGS["tags"][4] = -1  # a sentence without a tag
BATCHES = {"labels": LABELS, "tags": TAGS}


TASKS = {"labels": TextClassification, "tags": TokenTagging}


def task(format="labels", causal=True, **config):
    spec = TextSpec(BYTE, T, format, CLASSES)
    return TASKS[format](TaskConfig(**config), Table(causal=causal), spec)


def task_by_hand(form, causal, smoothing=0.0):
    """Nats, right answers and answers of each example."""
    found = []
    for b in range(B):
        rows = PARAMS["model"]["task_logits"][TOKENS[b, :T]].astype(np.float64)
        if form == "labels":
            n = LENGTHS[b]
            rows, answers = (
                (rows[n - 1] if causal else rows[:n].mean(0))[None],
                LABELS["label"][[b]],
            )
        else:
            own = TAGS["tags"][b] >= 0
            rows, answers = rows[own], TAGS["tags"][b][own]
        log_p = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        target = np.eye(3)[answers] * (1 - smoothing) + smoothing / 3
        nats = -(target * log_p).sum(-1)
        right = (rows.argmax(-1) == answers).sum()
        found.append((nats.mean() if len(nats) else 0.0, right, len(nats)))
    return map(np.array, zip(*found, strict=True))


@pytest.mark.parametrize("form, causal", [("labels", True), ("labels", False), ("tags", True)])
def test_the_joint_loss_of_a_task_by_hand(form, causal):
    """λ of the task and the text's own likelihood, each a mean over an example's own tokens."""
    weights = dict(lm_weight=0.7 if causal else 0.0, task_weight=1.3)
    objective = task(form, causal, label_smoothing=0.2, **weights)
    batch = BATCHES[form]
    loss, metrics = loss_of(objective, batch)
    task_B, right, count = task_by_hand(form, causal, 0.2)
    lm_B = np.array([
        -LOG_P[row[: n - 1], row[1:n]].mean() if n > 1 else 0.0
        for row, n in zip(TOKENS, LENGTHS, strict=True)
    ])  # fmt: skip
    w = batch["weight"]
    expected = 1.3 * task_B + weights["lm_weight"] * lm_B
    np.testing.assert_allclose(loss.total, (w * expected).sum(), rtol=1e-5)
    np.testing.assert_allclose(loss.weight, w.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["task_loss"].total, (w * task_B).sum(), rtol=1e-5)
    share = right / np.maximum(count, 1)
    np.testing.assert_allclose(metrics["accuracy"].total, (w * share).sum(), rtol=1e-5)
    assert ("lm_loss" in metrics) == causal
    if causal:
        np.testing.assert_allclose(
            metrics["lm_loss"].value(), (w * lm_B).sum() / w.sum(), rtol=1e-5
        )


@pytest.mark.parametrize("form, causal", [("labels", True), ("labels", False), ("tags", False)])
def test_evaluation_of_a_task_counts_answers(form, causal):
    """Without smoothing; accuracy over labels or words, none of examples that only fill up."""
    objective, batch = task(form, causal, label_smoothing=0.2), BATCHES[form]
    found = objective.evaluate(PARAMS, {}, batch, KEYS)
    task_B, right, count = task_by_hand(form, causal)
    real = batch["weight"] > 0
    np.testing.assert_allclose(found["loss"].total, task_B * batch["weight"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["accuracy"].total, right * real)
    np.testing.assert_allclose(found["accuracy"].weight, count * real)
    shown = objective.predict(PARAMS, {}, batch)
    true = batch["tags" if form == "tags" else "label"]
    wide = real[:, None] if form == "tags" else real
    np.testing.assert_array_equal(shown["true"], np.where(wide, true, -1))
    assert ((shown["predicted"] >= 0) == (np.asarray(shown["true"]) >= 0)).all()
    hits = (np.asarray(shown["predicted"]) == shown["true"]) & (np.asarray(shown["true"]) >= 0)
    assert hits.sum() == found["accuracy"].total.sum() and (np.asarray(shown["true"]) >= 0).any()


@pytest.mark.parametrize("form, causal", [("labels", True), ("labels", False), ("tags", True)])
def test_padding_changes_nothing_in_a_task(form, causal):
    objective = task(form, causal, lm_weight=1.0 if causal else 0.0)
    changed = np.where(BATCHES[form]["segments"] > 0, TOKENS, (TOKENS + 5) % 257)
    first, second = (
        loss_of(objective, BATCHES[form] | {"tokens": tokens}) for tokens in (TOKENS, changed)
    )
    chex.assert_trees_all_equal(first, second)


def test_a_joint_loss_needs_the_next_token_hidden():
    assert "objective.lm_weight" in refusal(task, causal=False, lm_weight=0.5)


def test_samples_of_a_task_are_its_prompts_with_their_answers():
    table = np.zeros((V, 3), np.float32)
    table[[ord("a"), ord("b"), BYTE.separator], [1, 2, 0]] = 9
    params = {"model": {"task_logits": table}}
    tags = TokenTagging(TaskConfig(), Table(), TextSpec(BYTE, 12, "tags", CLASSES))
    options = TaskSample(prompts=("ax by cz", "b"))
    rows = tiny.draw(tags, params, {}, options, 3)
    texts = tags.texts(rows, options)
    # A word's tag is read off its first token: for all but the first one that is the space.
    assert texts == ["ax/yes by/no cz/no", "b/maybe", "ax/yes by/no cz/no"]
    spec = TextSpec(BYTE, 12, "labels", CLASSES)
    labels = TextClassification(TaskConfig(), Table(causal=False), spec)
    options = TaskSample(prompts=("aaaa", "bbbb"))
    assert labels.texts(tiny.draw(labels, params, {}, options, 2), options) == [
        "yes: aaaa",
        "maybe: bbbb",
    ]


# Accumulation --------------------------------------------------------------------------------

OBJECTIVES = {
    "lm": lambda: LanguageModel(LMConfig(0.1, 0.1), Table(), BYTE),
    "masked_lm": lambda: masked(mask_rate=0.5),
    "labels": lambda: task("labels", lm_weight=0.5),
    "tags": lambda: task("tags", causal=False),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_microbatches_of_uneven_weight_are_one_batch(name):
    objective = OBJECTIVES[name]()
    batch = BATCHES.get(name, {"tokens": TOKENS, "weight": WEIGHT})

    @jax.jit
    def both(params):
        return [
            gradients(objective, "model", params, {}, batch, KEYS, STEP, accumulate, None)
            for accumulate in (1, 3)
        ]

    (loss, grads, *rest), again = both(PARAMS)
    chex.assert_trees_all_close((loss, grads, *rest), again, rtol=1e-4, atol=1e-6)
    assert max(float(abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-2
