"""Train, evaluate and sample as a person does: workdirs, resuming, refusals."""

import json
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import runs, tiny
from helpers.runs import final_state, records, same_runs, train

import aigc_jax
from aigc_jax.core.errors import UserError
from aigc_jax.core.metrics import Mean
from aigc_jax.runs.report.samples import write_samples
from aigc_jax.training.metric_log import read_metrics
from aigc_jax.training.metric_window import MetricAccumulator


@pytest.mark.xla_optimizations
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_run_from_start_to_samples(family, tmp_path):
    """Contents of every family's workdir, which evaluation, sampling and another run only read.

    A run that is interrupted and started again ends with the same state, data and records.
    """
    changes = dict(sample=dict(every=4), eval=dict(every=3))
    recipe = tiny.recipe(family, **changes)
    last = aigc_jax.train(recipe, str(tmp_path / "w"), progress=False)
    workdir = tmp_path / "moved"
    os.rename(tmp_path / "w", workdir)
    names = set(os.listdir(workdir))
    assert {"config.json", "metrics.jsonl", "checkpoints", "samples"} <= names
    assert any(n.startswith("events.out.tfevents") for n in names)
    steps = [(r["step"], r["kind"]) for r in read_metrics(str(workdir))]
    assert steps == [
        (2, "train"),
        (3, "train"),
        (3, "eval"),
        (4, "train"),
        (6, "train"),
        (6, "eval"),
    ]
    for record in read_metrics(str(workdir)):
        if record["kind"] == "train":
            assert record["compiles"] == 1 and 0 <= record["data_wait"] <= 1
            assert record["skipped"] == 0
    pictures = sorted(os.listdir(workdir / "samples"))
    suffix = ".txt" if family == "lm" else ".png"
    assert pictures == [f"step_0000004{suffix}", f"step_0000006{suffix}"]
    metrics = aigc_jax.evaluate(str(workdir))
    json.dumps(metrics)
    assert np.isfinite(metrics["loss"]) and metrics["loss"] == pytest.approx(last["loss"], rel=1e-6)
    samples = aigc_jax.sample(str(workdir), num=3, seed=1)
    assert len(samples) == 3
    again = aigc_jax.sample(str(workdir), num=3, seed=1)
    np.testing.assert_array_equal(samples, again)
    path = write_samples(samples, str(tmp_path / "out" / "picture"))
    assert path.endswith(suffix) and os.path.getsize(path) > 0

    with pytest.raises(KeyboardInterrupt):
        train(family, tmp_path / "cut", on_batch=runs.at_batch(5, runs.interrupt), **changes)
    assert final_state(tmp_path / "cut")[1] == 4
    aigc_jax.train(recipe, str(tmp_path / "cut"), progress=False)
    same_runs(workdir, tmp_path / "cut")


SLOW = [pytest.param(f, marks=pytest.mark.slow) for f in ("gan", "vae", "diffusion")]


@pytest.mark.parametrize("family", ["lm", *SLOW])
def test_bfloat16_computes_and_float32_keeps(family, tmp_path):
    train(family, tmp_path, train=dict(compute_dtype="bfloat16", steps=2), checkpoint=dict(every=0))
    state, _ = final_state(tmp_path)
    kept = [
        x
        for x in jax.tree.leaves((state.params, state.opt_state, state.ema))
        if x.dtype.kind == "f"
    ]
    chex.assert_type(kept, np.float32)
    chex.assert_tree_all_finite(kept)
    assert int(state.skipped) == 0
    run_parts, _, _ = aigc_jax.restore(str(tmp_path))
    batch = tiny.batch(family)
    loss, _ = jax.eval_shape(
        lambda p, k: run_parts.objective.loss(next(iter(p)), p, {}, batch, k, np.int32(0)),
        state.params,
        jax.random.split(jax.random.key(0), 8),
    )
    assert loss.total.dtype == np.float32


def test_no_data_wait_while_the_device_is_busy(monkeypatch):
    window, one = MetricAccumulator(0), jnp.float32(1)
    window.add_data_wait(1.0)
    assert window.data_wait == 1.0
    window.add({"loss": Mean(one, one)})
    monkeypatch.setattr(type(one), "is_ready", lambda self: False)
    window.add_data_wait(5.0)
    assert window.data_wait == 1.0
    monkeypatch.setattr(type(one), "is_ready", lambda self: True)
    window.add_data_wait(3.0)
    assert window.close(1)["data_wait"] == 1 and window.data_wait == 0


def test_more_steps_go_on(tmp_path):
    """The number of steps may grow; what is logged may change; nothing else may."""
    train("vae", tmp_path)
    train("vae", tmp_path, train=dict(steps=8, log_every=1))
    assert final_state(tmp_path)[1] == 8
    assert [r["step"] for r in records(tmp_path)] == [2, 3, 4, 6, 7, 8]
    before = records(tmp_path)
    train("vae", tmp_path, train=dict(steps=8))  # nothing is left to do
    assert records(tmp_path) == before


def test_sampling_options_are_checked_before_training(tmp_path):
    for family, changes in (
        ("gan", dict(sample=dict(label=12))),
        ("lm", dict(model=dict(positions="learned"), sample=dict(max_new_tokens=100))),
    ):
        with pytest.raises(UserError):
            train(family, tmp_path / "w", **changes)
        assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_run_moves_to_other_devices(tmp_path):
    """Saved on one device, continued on four, evaluated on one: nothing but the sums' order."""
    train("vae", tmp_path / "one")
    train("vae", tmp_path / "moved", train=dict(steps=3))
    train("vae", tmp_path / "moved", mesh="data=4")
    (one, _), (moved, _) = final_state(tmp_path / "one"), final_state(tmp_path / "moved")
    chex.assert_trees_all_close(one.params, moved.params, rtol=2e-3, atol=2e-4)
    assert np.isfinite(aigc_jax.evaluate(str(tmp_path / "moved"))["loss"])


def test_other_data_is_refused_when_resuming(tmp_path, monkeypatch):
    train("lm", tmp_path, data=dict(tokenizer="char"))
    from pydoc_data import topics

    monkeypatch.setattr(topics, "topics", {"a": "αβγδ " * 500, "b": "εζηθ " * 500})
    with pytest.raises(UserError, match="vocabulary"):
        train("lm", tmp_path, data=dict(tokenizer="char"), train=dict(steps=8))


def test_another_config_is_refused_and_nothing_is_lost(tmp_path):
    train("vae", tmp_path)
    before, kept = final_state(tmp_path), (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as e:
        train("vae", tmp_path, optim=dict(lr=0.5), seed=3)
    message = str(e.value)
    assert "optim.lr was 0.01 and is now 0.5" in message and "seed was 0 and is now 3" in message
    chex.assert_trees_all_equal(before, final_state(tmp_path))
    assert (tmp_path / "config.json").read_text() == kept
    # Without config.json the checkpoint itself tells, and a refusal leaves no wrong one behind.
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"seed was 0 and is now 3"):
        train("vae", tmp_path, seed=3)
    assert not (tmp_path / "config.json").exists()
    train("vae", tmp_path)
    assert (tmp_path / "config.json").read_text() == kept


def test_fields_that_an_older_config_lacks_have_their_defaults(tmp_path):
    train("vae", tmp_path)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    assert older["train"].pop("accumulate") == 1 and older["objective"].pop("beta")
    path.write_text(json.dumps(older))
    train("vae", tmp_path, train=dict(steps=8))
    assert final_state(tmp_path)[1] == 8
    path.write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"train.accumulate was 1 and is now 2"):
        train("vae", tmp_path, train=dict(steps=9, accumulate=2))


@pytest.mark.parametrize(
    "family,changes,message",
    [
        ("lm", dict(data=dict(source="digits")), "models tokens"),
        ("lm", dict(data=dict(seq_len=10**6)), "data.seq_len"),
        ("lm", dict(data=dict(source="tfds:none", data_dir="/nonexistent")), "/nonexistent"),
        ("vae", dict(data=dict(source="digit")), "did you mean 'digits'"),
        ("vae", dict(data=dict(validation_fraction=0.0)), "validation_fraction"),
        ("gan", dict(model=dict(critic_channels=(4, 4, 4, 4, 4))), "model.critic_channels"),
        (
            "gan",
            dict(optim=dict(generator=dict(lr=1e-3), lr=None, clip_norm=None, schedule=None)),
            "optim.critic",
        ),
        ("diffusion", dict(mesh="data=3"), "data.batch_size=8"),
        ("diffusion", dict(mesh="tensr=2"), "did you mean 'tensor'"),
        ("diffusion", dict(train=dict(accumulate=3)), "train.accumulate"),
    ],
    ids=str,
)
def test_inconsistent_recipe_is_one_line_and_writes_nothing(family, changes, message, tmp_path):
    with pytest.raises(UserError) as e:
        train(family, tmp_path / "w", **changes)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "w").exists()


def test_sampling_refuses_what_it_cannot(tmp_path):
    train("lm", tmp_path / "lm", data=dict(tokenizer="char"), model=dict(positions="learned"))
    for options, message in (
        (dict(guidance=2.0), "no option 'guidance'"),
        (dict(prompt="漢字"), "vocabulary"),
        (dict(max_new_tokens=100), "learned positions"),
        (dict(top_p=1.5), "at most 1"),
    ):
        with pytest.raises(UserError, match=message):
            aigc_jax.sample(str(tmp_path / "lm"), **options)
    texts = aigc_jax.sample(str(tmp_path / "lm"), num=2, prompt="The", max_new_tokens=3)
    assert all(t.startswith("The") for t in texts)
    train("vae", tmp_path / "vae")
    with pytest.raises(UserError, match="no classes"):
        aigc_jax.sample(str(tmp_path / "vae"), label=3)
    with pytest.raises(UserError, match="no checkpoint"):
        aigc_jax.sample(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_labels_reach_the_model(tmp_path):
    train("gan", tmp_path)
    with pytest.raises(UserError, match="0 to 9"):
        aigc_jax.sample(str(tmp_path), label=10)
    three, four = (aigc_jax.sample(str(tmp_path), num=2, label=n) for n in (3, 4))
    assert (three != four).any()


@pytest.mark.slow
def test_pmap_and_four_devices_train_alike(tmp_path):
    """Whole runs, with saving and evaluation, in the three ways to compile."""
    watched = dict(eval=dict(every=3))
    ways = {
        "one": dict(),
        "four": dict(mesh="data=4"),
        "pmap": dict(mesh="data=4", train=dict(parallel_mode="pmap")),
    }
    results = {}
    for name, changes in ways.items():
        train("vae", tmp_path / name, **changes, **watched)
        results[name] = final_state(tmp_path / name)[0].params
        assert all(r.get("compiles", 1) == 1 for r in records(tmp_path / name))
    for name in ("four", "pmap"):
        # Sums over devices in another order, through six steps of AdamW.
        chex.assert_trees_all_close(results["one"], results[name], rtol=2e-3, atol=2e-4)
