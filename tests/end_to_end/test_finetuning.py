"""From a pretrained workdir to a fine-tuned one: what is taken over, kept, refused, given out."""

import functools
import os

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import runs, tiny
from helpers.hostile import refusal
from helpers.own_texts import write_jsonl

import aigc_jax
from aigc_jax import interop
from aigc_jax.core.config import Data
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.experiment import build
from aigc_jax.experiment.restore import restore, tokenizer_of
from aigc_jax.experiment.warm_start import warm_start
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop import convert
from aigc_jax.modalities.image.spec import ImageSpec
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import CharTokenizer
from aigc_jax.runs.trainer import Trainer
from aigc_jax.training.checkpoint import CheckpointWriter

SIZE = dict(name="transformer", layers=1, width=8, heads=2, gated=True, activation="silu")
COMMON = dict(
    mesh="data=1",
    optim=dict(lr=0.05, schedule="constant"),
    ema=dict(halflife=8.0),
    checkpoint=dict(every=0),
)
LABELS = ["odd", "even"] * 10


def pretrained(source, **model):
    return aigc_jax.recipe(
        data=dict(source=source, seq_len=8, batch_size=4, tokenizer="char"),
        model=SIZE | model,
        objective=dict(name="lm"),
        train=dict(steps=2, log_every=2),
        sample=dict(num=1, max_new_tokens=4),
        **COMMON,
    )


def tuned(source, base, steps=2):
    return aigc_jax.recipe(
        data=dict(
            source=source, format="labels", seq_len=8, batch_size=4, tokenizer=f"workdir:{base}"
        ),
        model=SIZE | dict(lora_rank=2, lora_targets=("query", "down"), lora_alpha=3.0),
        objective=dict(name="classification", lm_weight=0.5),
        train=dict(steps=steps, log_every=2, init_from=base),
        eval=dict(every=4, batch_size=4),
        sample=dict(every=4, num=2, prompts=("text 3", "text 4")),
        **COMMON,
    )


def pretend(workdir, config):
    """Writes a workdir as if the recipe had been trained, with random parameters and averages."""
    config = build.parse_config(config)
    spec = TextSpec(CharTokenizer.of(["0123456789 text of odd even"]), 8)
    shapes = build.build(config, spec).state_shapes()
    state = tiny.perturbed(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), scale=0.3)
    writer = CheckpointWriter(workdir, keep=1)
    contents = {"config": config.raw, "spec": spec.to_json()}
    writer.save(2, jax.device_put(state), {"asked": False}, contents)
    writer.wait()
    writer.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The source, a language model's workdir and that of a classifier by low rank on it."""
    folder = tmp_path_factory.mktemp("runs")
    source, base, task = write_jsonl(folder, LABELS), str(folder / "base"), str(folder / "task")
    pretend(base, pretrained(source))
    aigc_jax.train(tuned(source, base), task, progress=False)
    aigc_jax.train(tuned(source, base, steps=4), task, progress=False)  # continues
    aigc_jax.train(tuned(source, base, steps=4), str(folder / "whole"), progress=False)
    return source, base, task


@functools.cache
def restored(workdir):
    run, state, _ = restore(workdir)
    return run, jax.device_get(state)


def test_the_pretrained_model_is_the_frozen_base(made):
    """Its average, which is what it is evaluated by, stays as it is to the last bit."""
    _, base, task = made
    (_, before), (_, after) = restored(base), restored(task)
    assert set(after.params) == {"base", "model"}
    chex.assert_trees_all_equal(after.params["base"], before.ema["model"])
    assert set(after.opt_state) == set(after.ema) == {"model"}
    factors = flatten_dict(after.params["model"]["lora"], sep="/")
    assert sorted(factors) == [
        f"layers/{kernel}/lora_{x}" for kernel in ("attention/query", "mlp/out") for x in "ab"
    ]
    assert all(factor.any() for factor in factors.values())  # b began as zero


def test_adapter_run_resumes_exactly(made):
    _, _, task = made
    (whole, end), (_, after) = runs.final_state(os.path.dirname(task) + "/whole"), restored(task)
    assert end == int(after.step) == 4
    chex.assert_trees_all_equal(whole, after)


def test_a_classifier_is_evaluated_and_sampled_while_it_trains(made):
    _, _, task = made
    *_, record = [r for r in runs.records(task) if r["kind"] == "eval"]
    assert record["step"] == 4 and 0 <= record["accuracy"] <= 1
    assert record["loss_low"] <= record["loss"] <= record["loss_high"]
    assert set(record["report"]["classes"]) <= {"even", "odd"} and record["report"]["count"] == 4
    with open(f"{task}/samples/step_0000004.txt") as f:
        lines = f.read().split("\n")
    assert [line.split(": ")[1] for line in lines[1::2][:2]] == ["text 3", "text 4"]
    metrics = aigc_jax.evaluate(task)
    assert metrics["loss"] == pytest.approx(record["loss"], rel=1e-6)
    assert aigc_jax.sample(task, prompt="odd")[0].endswith(": odd")


# What a run begins with ----------------------------------------------------------------------


def blank(config, spec):
    """The parameters of a recipe's model, all zero."""
    run = build.build(build.parse_config(config), spec)
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), run.state_shapes().params)


def test_warm_start_merges_trained_adapters(made, capsys):
    source, _, task = made
    run, state = restored(task)
    merged = lora.merge_adapters(state.sampling_params, 3.0 / 2)["model"]
    recipe = tuned(source, task)
    begun = warm_start(task, blank(recipe, run.spec))  # new adapters on the old model
    chex.assert_trees_all_equal(begun["base"], {k: merged[k] for k in begun["base"]})
    chex.assert_trees_all_equal(begun["model"]["task_head"], merged["task_head"])
    assert not any(x.any() for x in jax.tree.leaves(begun["model"]["lora"]))
    (line,) = runs.said(capsys)
    assert "4 initialised (model/lora/" in line
    recipe.model.lora_rank = 0
    begun = warm_start(task, blank(recipe, run.spec))  # all of it to be trained
    chex.assert_trees_all_equal(begun, {"model": merged})
    assert "0 initialised" in runs.said(capsys)[0]
    assert run.objective.merge_adapters(state.params)["model"].keys() == merged.keys()
    warm_start(task, blank(recipe, run.spec), build.parse_config(recipe))
    assert len(runs.said(capsys)) == 1
    recipe.model.rope_theta = 500.0
    warm_start(task, blank(recipe, run.spec), build.parse_config(recipe))
    assert "model.rope_theta was 10000.0 and is now 500.0" in runs.said(capsys)[1]


def test_warm_start_initialises_the_ema(made):
    source, base, _ = made
    run, _ = restored(base)
    recipe = pretrained(source)
    recipe.train.init_from = base
    training = Trainer(build.parse_config(recipe), "unused", PreemptionHandler())
    training.parts = run
    state = training._fresh_state()
    chex.assert_trees_all_equal(state.params, state.ema)
    chex.assert_trees_all_equal(jax.device_get(state.params), restored(base)[1].ema)
    assert int(state.step) == 0 and not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
    first, second = (jax.tree.leaves(x)[0] for x in (state.params, state.ema))
    assert first.unsafe_buffer_pointer() != second.unsafe_buffer_pointer()


def test_a_model_of_other_sizes_or_of_another_kind_is_refused(made):
    source, base, _ = made
    spec = restored(base)[0].spec
    message = refusal(warm_start, base, blank(pretrained(source, width=16), spec))
    assert f"train.init_from={base}" in message and "the same model sizes" in message
    decoder = {"model": {"decoder": {"kernel": np.zeros((8, 8))}}}
    assert "has no parameter of this model" in refusal(warm_start, base, decoder)
    nowhere = refusal(warm_start, base + "_", decoder)
    assert base + "_" in nowhere


def test_the_tokenizer_of_a_workdir(made, monkeypatch):
    _, base, task = made
    assert tokenizer_of(Data()) is None
    tokenizer = tokenizer_of(Data(tokenizer=f"workdir:{base}"))
    assert tokenizer.to_json() == restored(base)[0].spec.tokenizer.to_json()
    assert tokenizer.name == "char"
    # A run that was given one has it for the next, though its recipe names where it came from.
    assert tokenizer_of(Data(tokenizer=f"workdir:{task}")).to_json() == tokenizer.to_json()
    assert base + "_" in refusal(tokenizer_of, Data(tokenizer=f"workdir:{base}_"))
    images = 0, ImageSpec((8, 8, 1))
    monkeypatch.setattr("aigc_jax.experiment.restore.restore_latest", lambda *_: images)
    assert "'image'" in refusal(tokenizer_of, Data(tokenizer=f"workdir:{base}"))


# For other libraries -------------------------------------------------------------------------


def test_finetuned_model_exports_merged_or_adapters_only(made, tmp_path, capsys):
    _, _, task = made
    run, state = restored(task)
    assert convert.export_model(task, f"hf:{tmp_path}/hf") == f"{tmp_path}/hf"
    assert "head is left out" in runs.said(capsys)[0]
    found = interop.read_hf_folder(f"{tmp_path}/hf")
    merged = dict(lora.merge_adapters(state.sampling_params, 3.0 / 2)["model"])
    del merged["task_head"]
    chex.assert_trees_all_equal(found.params, merged)
    assert found.architecture == "llama" and found.model["vocab_size"] == run.spec.tokenizer.size

    convert.export_model(task, f"peft:{tmp_path}/peft")
    adapter = interop.read_peft_folder(f"{tmp_path}/peft", TransformerConfig(**found.model))
    chex.assert_trees_all_equal(adapter.lora, state.sampling_params["model"]["lora"])
    assert (adapter.rank, adapter.alpha, adapter.base) == (2, 3.0, "")
    assert set(adapter.targets) == {"query", "down"}


@pytest.mark.parametrize(
    "target, named",
    [("hf", "hf:DIR"), ("hf:", "hf:DIR"), ("gguf:a", "hf:DIR"), ("peft:a", "adapters")],
)
def test_invalid_export_target_is_rejected(made, target, named):
    assert named in refusal(convert.export_model, made[1], target)
