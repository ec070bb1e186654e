"""Folders of transformers: written and read again, and refused in one sentence if they are wrong.

The outputs are compared with those of transformers in `tests/parity`; nothing here needs PyTorch.
"""

import contextlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.hostile import damaged, refusal
from helpers.model_folders import edit, put, weights
from helpers.text_models import (
    GEMMA,
    GPT2,
    LLAMA,
    MODELS,
    SIZE,
    assert_same,
    folder_of,
    random_params,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigc_jax import interop
from aigc_jax.core.errors import StorageError, UserError
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.parameters import bind
from aigc_jax.interop.settings import make_config
from aigc_jax.interop.transformers.architectures import ARCHITECTURES
from aigc_jax.interop.transformers.config_json import (
    choose_architecture,
    find_architecture,
    read_config_json,
    resolved_fields,
)
from aigc_jax.interop.transformers.read_folder import transformer_shapes
from aigc_jax.interop.transformers.table import PLAIN, SIZES

ELSEWHERE = {  # fields that do not change what a model computes
    "init_std", "embedding_std", "zero_init", "dropout", "lora_rank", "lora_alpha", "lora_targets",
    "lora_dropout", "remat", "scan_unroll",
}  # fmt: skip


# There and back ------------------------------------------------------------------------------


def test_every_field_of_the_config_is_known_here():
    """A new field must say what it means to every architecture."""
    assert set(TransformerConfig.__dataclass_fields__) == set(PLAIN) | set(SIZES) | ELSEWHERE
    for arch in ARCHITECTURES.values():
        rows = (name for row in arch.settings for name in row.aigc)
        named = {*arch.aigc_fixed, *arch.derived, *rows}
        assert named <= set(PLAIN) | set(SIZES)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_as_it_was(name, tmp_path):
    config = TransformerConfig(**MODELS[name])
    params = random_params(config)
    folder = str(tmp_path / "model")
    assert interop.write_hf_folder(folder, config, params) == name
    read = interop.read_hf_folder(folder)
    assert read.architecture == name
    assert resolved_fields(TransformerConfig(**read.model)) == resolved_fields(config)
    assert_same(read.params, params)
    # As another architecture wrote it, the files would differ: so do the same bytes come again?
    interop.write_hf_folder(str(tmp_path / "again"), TransformerConfig(**read.model), read.params)
    for file in sorted(os.listdir(folder)):
        first, second = (Path(d, file).read_bytes() for d in (folder, tmp_path / "again"))
        assert first == second, file


ROPES = {
    "linear": dict(rope_scaling="linear", rope_factor=2.0),
    "llama3": dict(
        rope_scaling="llama3", rope_factor=8.0, rope_original_context=16, rope_low_freq_factor=2.0),
    "yarn": dict(
        rope_scaling="yarn", rope_factor=4.0, rope_original_context=8, rope_beta_fast=20.0,
        rope_theta=5e5),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("old", [True, False])
def test_rotary_settings_come_back_from_either_form(kind, old, tmp_path):
    folder = folder_of(tmp_path, **ROPES[kind])
    edit(folder, drop=["rope_parameters"] if old else ["rope_theta", "rope_scaling"])
    read = interop.read_hf_folder(folder).model
    for field, value in ROPES[kind].items():
        assert read[field] == value


def test_old_words_for_rotary_settings_and_missing_keys_mean_what_they_did(tmp_path):
    folder = folder_of(tmp_path, head_dim=0, kv_heads=0)
    edit(
        folder, drop=["rope_parameters", "head_dim", "num_key_value_heads", "rms_norm_eps"],
        rope_theta=None, rope_scaling=dict(type="linear", factor=3), unknown_but_null=None,
    )  # fmt: skip
    read = interop.read_hf_folder(folder).model
    assert (read["rope_scaling"], read["rope_factor"], read["rope_theta"]) == ("linear", 3, 1e4)
    assert (read["head_dim"], read["kv_heads"], read["norm_eps"]) == (4, 4, 1e-6)


@pytest.mark.parametrize("changes, window, every", [
    (dict(use_sliding_window=False), 0, 0),
    (dict(use_sliding_window=True, max_window_layers=0), 4, 0),
    (dict(use_sliding_window=True, max_window_layers=6), 0, 0),
    (dict(use_sliding_window=True, layer_types=["s", "s", "f", "s", "s", "f"]), 4, 3),
    (dict(use_sliding_window=True, layer_types=["f", "f", "f", "f", "f", "f"]), 0, 0),
    (dict(use_sliding_window=True, layer_types=["s", "s", "s", "s", "f", "s"]), 4, 5),
])  # fmt: skip
def test_windows_of_qwen_are_read(changes, window, every, tmp_path):
    folder = folder_of(tmp_path, "qwen2", layers=6)
    kinds = dict(s="sliding_attention", f="full_attention")
    if "layer_types" in changes:
        changes["layer_types"] = [kinds[kind] for kind in changes["layer_types"]]
    edit(folder, drop=["layer_types"] if "layer_types" not in changes else [], sliding_window=4,
         **changes)  # fmt: skip
    read = interop.read_hf_folder(folder).model
    assert (read["sliding_window"], read["full_attention_every"]) == (window, every)


def test_shards_and_types_are_kept(tmp_path):
    config = TransformerConfig(**MODELS["llama"])
    params = random_params(config)
    for dtype in ("float32", "bfloat16", "float16"):
        folder = str(tmp_path / dtype)
        interop.write_hf_folder(folder, config, params, dtype=dtype, max_shard_bytes=2000)
        assert sum(name.endswith(".safetensors") for name in os.listdir(folder)) > 2
        read = interop.read_hf_folder(folder)
        assert read.dtype == dtype
        for path, leaf in flatten_dict(read.params, sep="/").items():
            tolerance = {"float32": 0, "bfloat16": 4e-3, "float16": 1e-3}[dtype]
            np.testing.assert_allclose(
                leaf, flatten_dict(params, sep="/")[path], tolerance, tolerance
            )
        interop.write_hf_folder(folder + "2", config, read.params, dtype=dtype)
        assert_same(interop.read_hf_folder(folder + "2").params, read.params)


def test_reading_takes_little_more_memory_than_the_model(tmp_path):
    import tracemalloc

    config = TransformerConfig(**LLAMA | dict(layers=8, width=128, mlp_width=1024))
    folder = str(tmp_path / "model")
    params = random_params(config)
    interop.write_hf_folder(folder, config, params)
    interop.read_hf_folder(folder)  # what is loaded once
    tracemalloc.start()
    read = interop.read_hf_folder(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(leaf.nbytes for leaf in flatten_dict(read.params, sep="/").values())
    assert size < peak < 1.3 * size


PUBLISHED = {  # config.json as it lies beside well-known weights
    "smollm2": dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0,
        bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=576,
        initializer_range=0.0417, intermediate_size=1536, is_llama_config=True,
        max_position_embeddings=8192, mlp_bias=False, model_type="llama", num_attention_heads=9,
        num_hidden_layers=30, num_key_value_heads=3, pad_token_id=2, pretraining_tp=1,
        rms_norm_eps=1e-05, rope_interleaved=False, rope_scaling=None, rope_theta=100000,
        tie_word_embeddings=True, torch_dtype="bfloat16", use_cache=True, vocab_size=49152,
        **{"transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}}),
    "llama 3.2": dict(
        attention_bias=False, bos_token_id=128000, eos_token_id=[128001, 128008], head_dim=64,
        hidden_act="silu", hidden_size=2048, intermediate_size=8192, mlp_bias=False,
        max_position_embeddings=131072, model_type="llama", num_attention_heads=32,
        num_hidden_layers=16, num_key_value_heads=8, rms_norm_eps=1e-05, rope_scaling=dict(
            factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0,
            original_max_position_embeddings=8192, rope_type="llama3"),
        rope_theta=500000.0, tie_word_embeddings=True, vocab_size=128256),
    "qwen2.5": dict(
        hidden_act="silu", hidden_size=896, intermediate_size=4864, max_position_embeddings=32768,
        max_window_layers=21, model_type="qwen2", num_attention_heads=14, num_hidden_layers=24,
        num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768,
        tie_word_embeddings=True, use_mrope=False, use_sliding_window=False, vocab_size=151936),
    "gemma 2": dict(
        attn_logit_softcapping=50.0, cache_implementation="hybrid", final_logit_softcapping=30.0,
        head_dim=256, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
        hidden_size=2304, intermediate_size=9216, max_position_embeddings=8192,
        model_type="gemma2", num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4,
        query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096,
        vocab_size=256000),
    "gpt-2": dict(
        activation_function="gelu_new", attn_pdrop=0.1, embd_pdrop=0.1, model_type="gpt2",
        layer_norm_epsilon=1e-05, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024,
        resid_pdrop=0.1, summary_type="cls_index", summary_use_proj=True, vocab_size=50257,
        task_specific_params={"text-generation": {"do_sample": True}}, _num_labels=1),
    "bert": dict(
        attention_probs_dropout_prob=0.1, gradient_checkpointing=False, hidden_act="gelu",
        hidden_dropout_prob=0.1, hidden_size=768, intermediate_size=3072, layer_norm_eps=1e-12,
        max_position_embeddings=512, model_type="bert", num_attention_heads=12,
        num_hidden_layers=12, pad_token_id=0, position_embedding_type="absolute",
        type_vocab_size=2, use_cache=True, vocab_size=30522, directionality="bidi"),
}  # fmt: skip
PARAMETERS = {  # millions
    "smollm2": 134.5, "llama 3.2": 1235.8, "qwen2.5": 494.0, "gemma 2": 2614.3, "gpt-2": 124.4,
    "bert": 109.5,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_read_and_give_models_of_the_known_size(name):
    config = PUBLISHED[name]
    arch = find_architecture(config, name)
    fields = read_config_json(arch, config, name)
    shapes = transformer_shapes(make_config(arch, fields, name))
    assert bind(arch.rules, shapes, arch.hf)
    assert sum(map(math.prod, shapes.values())) / 1e6 == pytest.approx(PARAMETERS[name], abs=0.06)


# What is refused when a model is read --------------------------------------------------------


@pytest.mark.parametrize("name, changes, word", [
    ("llama", dict(model_type="bloom"), "model_type"),
    ("llama", dict(model_type=None), "model_type"),
    ("llama", dict(hidden_size="16"), "hidden_size"),
    ("llama", dict(hidden_size=0), "hidden_size"),
    ("llama", dict(hidden_size=2**40), "hidden_size"),
    ("llama", dict(hidden_size=10**30), "too large"),
    ("llama", dict(num_hidden_layers=10**9), "layers"),
    ("llama", dict(head_dim=2**31 - 2), "head_dim"),
    ("llama", dict(hidden_size=2**31 - 2, head_dim=None), "width"),
    ("llama", dict(intermediate_size=2**31 - 1), "mlp_width"),
    ("llama", dict(vocab_size=2**31 - 1), "vocab_size"),
    ("llama", dict(num_attention_heads=2**31 - 1), "heads"),
    ("llama", dict(num_attention_heads=3), "heads=3"),
    ("llama", dict(num_key_value_heads=3), "kv_heads"),
    ("llama", dict(rms_norm_eps=float("nan")), "rms_norm_eps"),
    ("llama", dict(rope_theta=float("inf"), rope_parameters=None), "rope_theta"),
    ("llama", dict(hidden_act="mish"), "hidden_act"),
    ("llama", dict(mystery=1), "mystery"),
    ("llama", dict(quantization_config=dict(bits=4)), "quantization_config"),
    ("llama", dict(auto_map=dict(a="b")), "auto_map"),
    ("llama", dict(sliding_window=5), "sliding_window"),
    ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor"),
    ("llama", dict(rope_theta=5.0), "rope_theta"),
    ("llama", dict(rope_scaling=dict(type="dynamic", factor=2)), "dynamic"),
    ("llama", dict(rope_scaling=dict(rope_type="longrope", factor=2)), "longrope"),
    ("llama", dict(rope_scaling=dict(rope_type=["x"])), "['x']"),
    ("llama", dict(rope_scaling=dict(rope_type="linear")), "factor"),
    ("llama", dict(
        rope_scaling=dict(rope_type="linear", factor=0.5), rope_parameters=None), "rope_factor"),
    ("llama", dict(rope_scaling=dict(rope_type="linear", factor=2.0)), "two kinds"),
    ("llama", dict(rope_scaling=[1]), "rope_scaling"),
    ("llama", dict(rope_parameters=dict(
        rope_type="yarn", factor=2.0, attention_factor=3.0)), "attention_factor"),
    ("llama", dict(rope_parameters=dict(
        rope_type="yarn", factor=2.0, truncate=False)), "truncate"),
    ("llama", dict(rope_parameters=dict(
        full_attention=dict(rope_theta=1e4), sliding_attention=dict(rope_theta=2e4)),
        rope_theta=None), "two kinds"),
    ("qwen3", dict(layer_types=["full_attention"]), "layer_types"),
    ("qwen3", dict(layer_types=["full_attention", {}]), "layer_types"),
    ("qwen3", dict(layer_types=["full_attention", "sliding_attention"]), "every second"),
    ("qwen3", dict(use_sliding_window="yes"), "use_sliding_window"),
    ("qwen3", dict(sliding_window=-1), "sliding_window"),
    ("qwen3", dict(max_window_layers="x"), "max_window_layers"),
    ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
    ("gpt2", dict(add_cross_attention=True), "add_cross_attention"),
    ("gpt2", dict(rope_theta=1e4), "rope_theta"),
    ("bert", dict(is_decoder=True), "is_decoder"),
    ("bert", dict(position_embedding_type="relative_key"), "position_embedding_type"),
    ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
    ("gemma2", dict(query_pre_attn_scalar="x"), "query_pre_attn_scalar"),
    ("gemma2", dict(query_pre_attn_scalar=float("inf")), "query_pre_attn_scalar"),
])  # fmt: skip
def test_settings_that_cannot_be_or_are_not_supported_are_named(name, changes, word, tmp_path):
    folder = folder_of(tmp_path, name)
    edit(folder, **changes)
    assert word in refusal(interop.read_hf_folder, folder)


def test_settings_that_are_missing_or_no_json_are_named(tmp_path):
    folder = folder_of(tmp_path)
    edit(folder, drop=["intermediate_size"])
    assert "intermediate_size" in refusal(interop.read_hf_folder, folder)
    path = os.path.join(folder, "config.json")
    for content, word in (
        (b"[1]", "object"), (b"{", "JSON"), (b"\xff", "JSON"), (b"[" * 10**5, "JSON"),
    ):  # fmt: skip
        with open(path, "wb") as f:
            f.write(content)
        assert word in refusal(interop.read_hf_folder, folder)
    os.remove(path)
    assert "config.json" in refusal(interop.read_hf_folder, folder)
    assert "config.json" in refusal(interop.read_hf_folder, str(tmp_path / "nowhere"))


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("change, word", [
    (lambda a: a.pop(Q), Q),
    (lambda a: a.update({Q: a[Q][:8]}), Q),
    (lambda a: a.update({Q: a[Q].reshape(4, 4, 16)}), Q),
    (lambda a: a.update({Q: a[Q].astype(np.int32)}), "I32"),
    (lambda a: a.update({"score.weight": a[Q]}), "score.weight"),
    (lambda a: a.update({Q.replace(".1.", ".2."): a[Q]}), ".2."),
    (lambda a: a.update({Q.removeprefix("model."): a[Q]}), "twice"),
    (lambda a: a.update({Q.replace("weight", "bias"): a[Q][0]}), "bias"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, word, tmp_path):
    folder = folder_of(tmp_path)
    arrays = weights(folder)
    change(arrays)
    put(folder, arrays)
    assert word in refusal(interop.read_hf_folder, folder)


def test_a_tied_copy_must_be_one(tmp_path):
    folder = folder_of(tmp_path, tie_embeddings=True)
    params = interop.read_hf_folder(folder).params
    arrays = weights(folder)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    put(folder, arrays)
    assert_same(interop.read_hf_folder(folder).params, params)
    arrays["lm_head.weight"][0, 0] += 1
    put(folder, arrays)
    assert "tie_word_embeddings" in refusal(interop.read_hf_folder, folder)
    del arrays["model.embed_tokens.weight"]  # only the copy is there
    arrays["lm_head.weight"][0, 0] -= 1
    put(folder, arrays)
    np.testing.assert_allclose(
        interop.read_hf_folder(folder).params["token_embedding"]["embedding"],
        params["token_embedding"]["embedding"], atol=1e-6,
    )  # fmt: skip


def test_pickles_are_not_read(tmp_path):
    folder = folder_of(tmp_path)
    os.remove(os.path.join(folder, "model.safetensors"))
    assert "model.safetensors" in refusal(interop.read_hf_folder, folder)
    with open(os.path.join(folder, "pytorch_model.bin"), "wb") as f:
        f.write(b"\x80\x04.")
    assert "pytorch_model.bin" in refusal(interop.read_hf_folder, folder)


def sharded(tmp_path, change):
    """A folder of two shards whose index and files were changed."""
    folder = folder_of(tmp_path)
    arrays = weights(folder)
    os.remove(os.path.join(folder, "model.safetensors"))
    half = len(arrays) // 2
    parts = {"a.safetensors": dict(list(arrays.items())[:half]),
             "b.safetensors": dict(list(arrays.items())[half:])}  # fmt: skip
    index = {name: file for file, part in parts.items() for name in part}
    index = change(parts, index) or index
    for file, part in parts.items():
        put(folder, part, file)
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"weight_map": index}, f)
    return folder


@pytest.mark.parametrize("change, word", [
    (lambda parts, index: parts["b.safetensors"].update(
        {"model.norm.weight": np.ones(16, np.float32)}) or parts["a.safetensors"].update(
        {"model.norm.weight": np.ones(16, np.float32)}), "model.norm.weight"),
    (lambda parts, index: parts.pop("b.safetensors") and None, "lacks b.safetensors"),
    (lambda parts, index: index | {"x": "../b.safetensors"}, "../b.safetensors: it must"),
    (lambda parts, index: index | {"x": "/etc/passwd"}, "/etc/passwd: it must"),
    (lambda parts, index: index | {"x": "pytorch_model.bin"}, ".bin: it must"),
    (lambda parts, index: index | {"x": "a.safetensors"}, "x is not in"),
    (lambda parts, index: dict.fromkeys(index, "a.safetensors"), "is not in a.safetensors"),
    (lambda parts, index: {"x": 3}, "weight_map"),
    (lambda parts, index: [3], "weight_map"),
])  # fmt: skip
def test_an_index_that_lies_is_refused(change, word, tmp_path):
    assert word in refusal(interop.read_hf_folder, sharded(tmp_path, change))


def test_two_shards_are_read(tmp_path):
    folder = sharded(tmp_path, lambda parts, index: None)
    assert_same(
        interop.read_hf_folder(folder).params, random_params(TransformerConfig(**MODELS["llama"]))
    )


# What is refused when a model is written -----------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    (dict(activation="relu", gated=False), ["llama", "model.gated=True"]),
    (LLAMA | dict(embedding_norm=True), ["llama", "model.embedding_norm=False"]),
    (LLAMA | dict(residual_scale=0.5), ["model.residual_scale=1.0"]),
    (LLAMA | dict(qkv_bias=True, mlp_bias=True), ["llama", "model.qkv_bias and model.out_bias"]),
    (GPT2 | dict(kv_heads=2), ["gpt2", "model.kv_heads=4"]),
    (GPT2 | dict(causal=False), ["gpt2", "model.causal=True"]),
    (MODELS["bert"] | dict(head_bias=False), ["bert", "model.head_bias=True"]),
    (GEMMA | dict(embedding_scale=4.1), ["gemma", "model.embedding_scale=4.0"]),
    (MODELS["gemma2"] | dict(attention_scale=0.3), ["gemma2", "another model.attention_scale"]),
    (MODELS["mistral"] | dict(full_attention_every=2), ["model.full_attention_every=0"]),
    (dict(vocab_size=0), ["model.vocab_size"]),
])  # fmt: skip
def test_a_model_that_no_architecture_holds_is_refused_by_what_keeps_it(changes, words, tmp_path):
    config = TransformerConfig(**SIZE | changes)
    message = refusal(interop.write_hf_folder, str(tmp_path / "model"), config, {})
    for word in words:
        assert word in message
    assert os.listdir(tmp_path) == []


def test_unused_or_repeated_settings_are_accepted():
    for changes in (
        dict(attention_scale=0.5), dict(norm_bias=False), dict(full_attention_every=3),
        dict(positions="rotary", rope_factor=3.0, rope_beta_fast=7.0),
    ):  # fmt: skip
        assert choose_architecture(TransformerConfig(**LLAMA | changes))[0].hf == "llama"
    assert choose_architecture(TransformerConfig(**GPT2 | dict(rope_theta=5.0)))[0].hf == "gpt2"
    assert (
        choose_architecture(
            TransformerConfig(**LLAMA | dict(sliding_window=4, full_attention_every=1))
        )[0].hf
        == "llama"
    )


def test_an_architecture_can_be_asked_for(tmp_path):
    config = TransformerConfig(**LLAMA)
    params = random_params(config)
    for name in ("llama", "mistral"):
        folder = str(tmp_path / name)
        assert interop.write_hf_folder(folder, config, params, architecture=name) == name
        assert interop.read_hf_folder(folder).architecture == name
    wrong = str(tmp_path / "wrong")
    message = refusal(interop.write_hf_folder, wrong, config, params, architecture="qwen3")
    assert "qwen3" in message and "qk_norm" in message
    assert "lama" in refusal(interop.write_hf_folder, wrong, config, params, architecture="lama")


def test_parameters_of_another_model_are_refused(tmp_path):
    config = TransformerConfig(**LLAMA)
    params, folder = random_params(config), str(tmp_path / "model")
    for change, word in (
        (lambda p: p["layers"].pop("mlp_norm"), "layers/mlp_norm/scale"),
        (lambda p: p.update(task_head={"bias": np.zeros(2)}), "task_head/bias"),
        (lambda p: p.update(final_norm={"scale": np.ones(8)}), "final_norm/scale"),
    ):
        wrong = unflatten_dict(flatten_dict(params, sep="/"), sep="/")
        change(wrong)
        assert word in refusal(interop.write_hf_folder, folder, config, wrong)
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    config = TransformerConfig(**LLAMA)
    params, folder = random_params(config), str(tmp_path / "a" / "model")
    params["final_norm"]["scale"][0] = 1e30
    message = refusal(interop.write_hf_folder, folder, config, params, dtype="float16")
    assert "float16" in message and os.listdir(tmp_path / "a") == []
    os.makedirs(folder)  # an empty one will do
    interop.write_hf_folder(folder, config, params)
    before = sorted(os.listdir(folder))
    assert "not an empty folder" in refusal(interop.write_hf_folder, folder, config, params)
    assert sorted(os.listdir(folder)) == before and os.listdir(tmp_path / "a") == ["model"]
    (tmp_path / "file").write_text("")
    for place in ("file", "file/model"):
        with pytest.raises((UserError, StorageError)):
            interop.write_hf_folder(str(tmp_path / place), config, params)
    assert "dtype" in refusal(interop.write_hf_folder, folder, config, params, dtype="int8")
    assert "bos" in refusal(interop.write_hf_folder, folder, config, params, specials=dict(end=3))


# Damaged and arbitrary files ----------------------------------------------------------------

ANY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANY
@given(data=st.data())
def test_damaged_folders_are_read_or_refused(data, tmp_path):
    source = tmp_path / "model"
    if not source.exists():
        folder_of(tmp_path)
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    good = Path(source, name).read_bytes()
    try:
        Path(source, name).write_bytes(data.draw(damaged([good])))
        with contextlib.suppress(UserError):
            interop.read_hf_folder(str(source))
    finally:
        Path(source, name).write_bytes(good)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_type", "factor", "type", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


@ANY
@given(name=st.sampled_from(sorted(MODELS)), data=st.data())
def test_any_value_of_a_setting_is_read_or_refused(name, data, tmp_path):
    folder = tmp_path / name
    if not folder.exists():
        config = TransformerConfig(**MODELS[name])
        interop.write_hf_folder(str(folder), config, random_params(config))
    good = Path(folder, "config.json").read_text()
    content = json.loads(good)
    keys = sorted(
        {*content, "layer_types", "sliding_window", "rope_scaling", "quantization_config"}
    )
    content[data.draw(st.sampled_from(keys))] = data.draw(JSON)
    try:
        Path(folder, "config.json").write_text(json.dumps(content))
        with contextlib.suppress(UserError):
            interop.read_hf_folder(str(folder))
    finally:
        Path(folder, "config.json").write_text(good)
