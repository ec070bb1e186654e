"""GGUF files: the weights that were written, or one sentence why not."""

import contextlib
import dataclasses
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.hostile import damaged, refusal
from helpers.text_models import (
    GPT2,
    LLAMA,
    assert_same,
    random_params,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigc_jax import interop
from aigc_jax.core.errors import UserError
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.gguf.read_file import TABLES
from aigc_jax.interop.parameters import bind, export_tensor
from aigc_jax.interop.transformers.config_json import (
    resolved_fields,
)
from aigc_jax.interop.transformers.read_folder import transformer_shapes
from aigc_jax.ops.rope import rotary_frequencies


def gguf_file(
    path, name="llama", drop=(), kind="F32", rope_freqs=None, rope_freq_base=1e4, **metadata
):
    """A GGUF file of a small model, written by the package itself with llama.cpp's layout."""
    gguf = pytest.importorskip("gguf")
    config = TransformerConfig(**GGUF_MODELS[name])
    params = random_params(config)
    leaves = flatten_dict(params, sep="/")
    # The order of a head's rows is written by hand below: reading must not agree by mistake.
    rules = [dataclasses.replace(rule, rotary_heads="") for rule in TABLES[name].rules]
    writer = gguf.GGUFWriter(path, name)
    norm = "layer_norm_eps" if name == "gpt2" else "layer_norm_rms_eps"
    tokens = ["<|end|>", *"abcdefghijklmn", "\u0120", "ab", "\u0120a", "<u>"]
    sizes = dict(
        block_count=2, context_length=32, embedding_length=32, feed_forward_length=64,
        head_count=4, tokenizer_model="gpt2", tokenizer_pre="smollm", token_list=tokens,
        token_types=[3, *[1] * 17, 4], token_merges=["a b", "\u0120 a"], eos_token_id=0,
        chat_template="{{ x }}",
    ) | {norm: 1e-6}  # fmt: skip
    if name != "gpt2":
        sizes |= dict(head_count_kv=config.key_heads, rope_freq_base=rope_freq_base)
    if config.head_dim:
        sizes |= dict(key_length=config.head_dim, value_length=config.head_dim)
    for key, value in sizes.items():
        if key not in drop:
            getattr(writer, f"add_{key}")(value)
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key.replace("__", "."), value)
    for tensor in bind(rules, transformer_shapes(config), name):
        array = np.ascontiguousarray(export_tensor(tensor, leaves))
        if name == "llama" and tensor.name.split(".")[-2] in ("attn_q", "attn_k"):
            heads = config.heads if "attn_q" in tensor.name else config.key_heads
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        if tensor.name in drop:
            continue
        if kind == "F32" or array.ndim == 1:
            writer.add_tensor(tensor.name, array)
        else:
            kind_of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(tensor.name, gguf.quants.quantize(array, kind_of), raw_dtype=kind_of)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path), params


WIDE = dict(width=32, mlp_width=64, layers=2)
GGUF_MODELS = {
    "llama": LLAMA | WIDE | dict(tie_embeddings=False),
    "qwen2": LLAMA | WIDE | dict(qkv_bias=True),
    "qwen3": LLAMA | WIDE | dict(qk_norm=True, head_dim=16),
    "gpt2": GPT2 | WIDE,
}  # fmt: skip


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_a_gguf_file_is_read_bit_by_bit(name, tmp_path):
    path, params = gguf_file(tmp_path / "m.gguf", name)
    read = interop.read_gguf_file(path)
    assert read.architecture == name
    config = TransformerConfig(**GGUF_MODELS[name])
    assert resolved_fields(TransformerConfig(**read.model)) == resolved_fields(config)
    assert_same(read.params, params)
    assert read.notes == () and read.chat_template == "{{ x }}" and read.specials == dict(eos=0)
    assert read.tokenizer.encode("ab a<u>ba<|end|>").ids == [16, 17, 18, 2, 1, 0]
    assert read.tokenizer.decode([16, 17, 18]) == "ab a<u>"


@pytest.mark.parametrize(
    "kind, tolerance", [("F16", 1e-3), ("BF16", 4e-3), ("Q8_0", 5e-3), ("Q4_1", 6e-2)]
)
def test_rounded_weights_are_near(kind, tolerance, tmp_path):
    path, params = gguf_file(tmp_path / "m.gguf", kind=kind)
    read = interop.read_gguf_file(path)
    want = flatten_dict(params, sep="/")
    for leaf_path, leaf in flatten_dict(read.params, sep="/").items():
        error = np.abs(leaf - want[leaf_path]).max()
        assert error < tolerance, leaf_path
        assert leaf.ndim == 1 or "norm" in leaf_path or error > 0
    assert (kind in " ".join(read.notes)) == kind.startswith("Q")


@pytest.mark.parametrize("drop, metadata, word", [
    ((), dict(llama__expert_count=4), "expert_count"),
    ((), dict(llama__logit_scale=0.5), "logit_scale"),
    ((), dict(llama__rope__dimension_count=4), "rope.dimension_count"),
    ((), dict(llama__rope__scaling__type="longrope"), "longrope"),
    ((), dict(llama__rope__scaling__type="yarn"), "factor"),
    ((), dict(split__count=2), "parts"),
    (("blk.1.attn_q.weight",), {}, "blk.1.attn_q.weight"),
    (("token_embd.weight",), {}, "token_embd.weight"),
    (("head_count",), {}, "num_attention_heads"),
    (("tokenizer_model",), {}, "tokenizer"),
    (("tokenizer_pre",), dict(tokenizer__ggml__pre="chatglm"), "chatglm"),
    (("token_merges",), dict(tokenizer__ggml__merges="x"), "merges"),
    (("token_list",), {}, "vocabulary"),
])  # fmt: skip
def test_gguf_files_that_are_not_supported_are_refused(drop, metadata, word, tmp_path):
    path, _ = gguf_file(tmp_path / "m.gguf", drop=drop, **metadata)
    assert word in refusal(interop.read_gguf_file, path)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_is_recognised_by_its_rope_factors(factor, tmp_path):
    theta = 5e5
    plain, _ = rotary_frequencies(8, theta)
    divided, _ = rotary_frequencies(
        8, theta, scaling="llama3", factor=factor, original_context=8192
    )
    path, _ = gguf_file(tmp_path / "m.gguf", rope_freqs=plain / divided, rope_freq_base=theta)
    read = interop.read_gguf_file(path).model
    assert (read["rope_scaling"], read["rope_factor"]) == ("llama3", factor)
    assert (read["rope_original_context"], read["rope_theta"]) == (8192, theta)
    path, _ = gguf_file(tmp_path / "n.gguf", rope_freqs=np.ones(4), rope_freq_base=theta)
    assert interop.read_gguf_file(path).model["rope_scaling"] == "none"
    path, _ = gguf_file(tmp_path / "o.gguf", rope_freqs=np.arange(1, 5), rope_freq_base=theta)
    assert "rope_freqs" in refusal(interop.read_gguf_file, path)


def test_the_token_that_ends_a_turn_ends_a_generation_too(tmp_path):
    path, _ = gguf_file(tmp_path / "m.gguf", tokenizer__ggml__eot_token_id=3)
    assert interop.read_gguf_file(path).specials == dict(eos=[0, 3])


def test_scaled_rotary_positions_of_a_gguf_file_are_read(tmp_path):
    path, _ = gguf_file(
        tmp_path / "m.gguf", llama__rope__scaling__type="yarn", llama__rope__scaling__factor=4.0,
        llama__rope__scaling__original_context_length=16,
    )  # fmt: skip
    read = interop.read_gguf_file(path).model
    assert (read["rope_scaling"], read["rope_factor"], read["rope_original_context"]) == (
        "yarn",
        4,
        16,
    )


def test_a_broken_gguf_file_is_refused_wherever_it_ends(tmp_path):
    path, _ = gguf_file(tmp_path / "m.gguf")
    data = Path(path).read_bytes()
    for size in [*range(0, 200), *range(200, len(data), 997), len(data) - 1]:
        Path(path).write_bytes(data[:size])
        refusal(interop.read_gguf_file, path)
    for at, value in (
        (0, b"X"),
        (4, b"\x09"),
        (8, b"\xff" * 8),
        (16, b"\xff" * 8),
        (24, b"\xff" * 8),
    ):
        broken = bytearray(data)
        broken[at : at + len(value)] = value
        Path(path).write_bytes(broken)
        refusal(interop.read_gguf_file, path)
    refusal(interop.read_gguf_file, str(tmp_path))
    refusal(interop.read_gguf_file, str(tmp_path / "none"))


def test_a_list_that_claims_more_than_there_is_takes_no_memory(tmp_path):
    pytest.importorskip("gguf")
    for item in (0, 4, 8, 9):
        content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
        content += struct.pack("<Q1sIIQ", 1, b"k", 9, item, 2**62)
        (tmp_path / "m.gguf").write_bytes(content)
        assert "list of" in refusal(interop.read_gguf_file, str(tmp_path / "m.gguf"))
    content = b"GGUF" + struct.pack("<IQQQ1sIQ", 3, 0, 1, 1, b"k", 8, 100) + b"abc"
    (tmp_path / "m.gguf").write_bytes(content)
    assert "cut off" in refusal(interop.read_gguf_file, str(tmp_path / "m.gguf"))
    content = b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 4_000_000) + b"abc"
    (tmp_path / "m.gguf").write_bytes(content)
    assert "GGUF file" in refusal(interop.read_gguf_file, str(tmp_path / "m.gguf"))


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert "aigc-jax[gguf]" in refusal(interop.read_gguf_file, str(tmp_path / "m.gguf"))


ANY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@ANY
@given(data=st.data())
def test_damaged_gguf_files_are_read_or_refused(data, tmp_path):
    path = tmp_path / "m.gguf"
    if not path.exists():
        gguf_file(path)
    good = path.read_bytes()
    other = tmp_path / "damaged.gguf"
    other.write_bytes(data.draw(damaged([good])))
    with contextlib.suppress(UserError):
        interop.read_gguf_file(str(other))
