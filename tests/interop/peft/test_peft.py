"""Adapters of PEFT: the same bits back, or one sentence why not."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.hostile import refusal
from helpers.model_folders import put, weights
from helpers.text_models import MODELS, assert_same

from aigc_jax import interop
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.transformers.read_folder import transformer_shapes


def random_lora(config):
    rng = np.random.default_rng(1)
    shapes = transformer_shapes(config)
    places = dict(
        query="attention/query", value="attention/value", down="mlp/out", key="attention/key"
    )
    leaves = {}
    for target in config.lora_targets:
        layers, inputs, outputs = shapes[f"layers/{places[target]}/kernel"]
        for name, shape in dict(lora_a=(inputs, 3), lora_b=(3, outputs)).items():
            leaf = rng.normal(size=(layers, *shape)).astype(np.float32)
            leaves[f"layers/{places[target]}/{name}"] = leaf
    return unflatten_dict(leaves, sep="/")


def adapter_of(tmp_path, name="llama", targets=("query", "value", "down")):
    config = TransformerConfig(
        **MODELS[name], lora_rank=3, lora_alpha=5.0, lora_targets=targets
    )  # fmt: skip
    lora = random_lora(config)
    folder = str(tmp_path / "adapter")
    interop.write_peft_folder(folder, config, lora, "some/base")
    return folder, config, lora


@pytest.mark.parametrize("name, targets", [
    ("llama", ("query", "value", "down")), ("bert", ("key", "down")), ("gpt2", ("query", "key")),
    ("gpt2", ("value",)), ("gemma2", ("query",)),
])  # fmt: skip
@pytest.mark.parametrize("zero", [False, True])
def test_an_adapter_comes_back_as_it_was(name, targets, zero, tmp_path):
    config = TransformerConfig(**MODELS[name], lora_rank=3, lora_alpha=5.0, lora_targets=targets)
    lora = random_lora(config)
    if zero:  # as it begins: nothing shows which rows are whose
        for path, leaf in flatten_dict(lora, sep="/").items():
            leaf *= path.endswith("lora_a")
    interop.write_peft_folder(str(tmp_path / "adapter"), config, lora, "some/base")
    back = interop.read_peft_folder(str(tmp_path / "adapter"), config)
    assert (back.rank, back.alpha, back.base) == (3, 5.0, "some/base")
    assert set(back.targets) == set(targets)
    assert_same(back.lora, lora)


@pytest.mark.parametrize("changes, word", [
    (dict(peft_type="IA3"), "IA3"), (dict(use_dora=True), "use_dora"), (dict(bias="all"), "bias"),
    (dict(modules_to_save=["lm_head"]), "modules_to_save"), (dict(mystery=3), "mystery"),
    (dict(init_lora_weights="pissa"), "pissa"), (dict(r=0), "r must"), (dict(r="3"), "r must"),
    (dict(lora_alpha=None), "lora_alpha"), (dict(r=4), "rank"),
    (dict(alpha_pattern={"q_proj": 3}), "different ranks or scales"),
    (dict(alpha_pattern={"layers.1.self_attn.q_proj": 3}), "layers.1"),
    (dict(alpha_pattern={"(a+)+": 3}), "(a+)+"), (dict(rank_pattern=[3]), "rank_pattern"),
    (dict(rank_pattern={"q_proj": 0}), "rank_pattern"),
])  # fmt: skip
def test_unsupported_adapters_are_rejected(changes, word, tmp_path):
    folder, _, _ = adapter_of(tmp_path)
    path = Path(folder, "adapter_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert word in refusal(interop.read_peft_folder, folder)


A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("change, word", [
    (lambda a: a.pop(A), "layers.1.self_attn.q_proj"),
    (lambda a: [a.pop(k) for k in list(a) if ".0.self_attn.q" in k], "lacks layers"),
    (lambda a: a.update({A: a[A][:2]}), "ranks"),
    (lambda a: a.update({A: a[A][:, :8]}), "differ in shape"),
    (lambda a: a.update({A: a[A][0]}), "matrix"),
    (lambda a: a.update({A: a[A].astype(np.int8)}), "matrix"),
    (lambda a: a.update({"base_model.model.lm_head.lora_A.weight": a[A]}), "lm_head"),
    (lambda a: a.update({A.replace("lora_A.weight", "lora_magnitude_vector"): a[A]}), "magnitude"),
    (lambda a: a.clear(), "no factors"),
])  # fmt: skip
def test_factors_that_do_not_fit_are_refused(change, word, tmp_path):
    folder, _, _ = adapter_of(tmp_path)
    arrays = weights(folder, "adapter_model.safetensors")
    change(arrays)
    put(folder, arrays, "adapter_model.safetensors")
    assert word in refusal(interop.read_peft_folder, folder)


def test_adapters_for_another_model_or_elsewhere_are_refused(tmp_path):
    folder, _, _ = adapter_of(tmp_path)
    other = TransformerConfig(**MODELS["llama"] | dict(mlp_width=28))
    assert "mlp/out" in refusal(interop.read_peft_folder, folder, other)
    path = Path(folder, "adapter_model.safetensors")
    path.rename(Path(folder, "adapter_model.bin"))
    assert "pickle" in refusal(interop.read_peft_folder, folder)
    assert "adapter_config.json" in refusal(interop.read_peft_folder, str(tmp_path))
    plain = TransformerConfig(**MODELS["llama"])
    assert "lora_rank" in refusal(interop.write_peft_folder, str(tmp_path / "x"), plain, {})


def test_blocks_that_are_none_are_refused(tmp_path):
    folder, _, _ = adapter_of(tmp_path, "gpt2", ("query", "value"))
    path = Path(folder, "adapter_model.safetensors")
    arrays = safetensors.numpy.load_file(path)
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    assert arrays[name].shape == (48, 6)
    arrays[name][0, 5] = 1.0
    joint = {"aigc_jax.joint": "layers/attention/query layers/attention/value"}
    safetensors.numpy.save_file(arrays, path, metadata=joint)
    assert "attn.c_attn" in refusal(interop.read_peft_folder, folder)
    for words in ("layers/attention/query", "a b", "layers/attention/query " * 2):
        safetensors.numpy.save_file(arrays, path, metadata={"aigc_jax.joint": words})
        assert refusal(interop.read_peft_folder, folder)
