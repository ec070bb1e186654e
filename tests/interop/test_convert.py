"""Other libraries' models as workdirs and back: the same bytes, or one sentence why not."""

import os

import chex
import jax
import numpy as np
import pytest
from helpers import runs, tiny
from helpers.hostile import refusal
from helpers.small_tokenizers import trained, wordpiece

from aigc_jax import interop
from aigc_jax.core.workdir import has_run
from aigc_jax.experiment.restore import restore, warm_start
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop import convert
from aigc_jax.interop.transformers import names

SIZE = dict(layers=2, width=8, heads=2, context=32)
BERT = dict(
    causal=False, positions="learned", norm="layernorm", norm_position="post", embedding_norm=True,
    activation="gelu_exact", qkv_bias=True, out_bias=True, mlp_bias=True, token_types=2,
    head_transform=True, head_bias=True)  # fmt: skip
MODELS = {
    "llama": dict(
        gated=True, activation="silu", kv_heads=1, rope_theta=500.0, tie_embeddings=False),
    "gpt2": dict(
        positions="learned", norm="layernorm", norm_eps=1e-5, qkv_bias=True, out_bias=True,
        mlp_bias=True),
    "bert": BERT,
}  # fmt: skip
GENERATION = dict(do_sample=True, temperature=0.7, top_p=0.9, top_k=5)


def write(folder, name, dtype="float32", generation=None):
    """A folder as others have it; returns its parameters."""
    bert = name == "bert"
    library = wordpiece() if bert else trained().to_library()
    config = TransformerConfig(**SIZE | MODELS[name], vocab_size=library.get_vocab_size())
    rng = np.random.default_rng(0)
    leaves = {k: rng.normal(0, 0.2, s).astype(np.float32) for k, s in names.shapes(config).items()}
    params = names.nested(leaves)
    specials = dict(pad=0, unk=1, cls=2, sep=3, mask=4) if bert else dict(bos=0, eos=[0, 2])
    interop.write_folder(
        folder,
        config,
        params,
        dtype=dtype,
        tokenizer=library,
        specials=specials,
        generation=generation,
    )
    return params


@pytest.mark.parametrize(
    "name, dtype, generation",
    [("llama", "bfloat16", GENERATION), ("gpt2", "float32", None), ("bert", "float16", None)],
)
def test_a_model_goes_through_a_workdir_without_a_changed_bit(name, dtype, generation, tmp_path):
    first, workdir, again = (str(tmp_path / n) for n in ("first", "w", "again"))
    write(first, name, dtype, generation)
    convert.from_other(f"hf:{first}", workdir)
    assert convert.to_other(workdir, f"hf:{again}") == again
    one, other = (
        {os.path.relpath(path, folder): content for path, content in runs.files(folder).items()}
        for folder in (first, again)
    )
    assert one.keys() == other.keys() and {"config.json", "tokenizer.json"} <= one.keys()
    for file in one:
        assert one[file] == other[file], file


def test_a_converted_model_is_a_run_of_no_steps(tmp_path):
    params = write(str(tmp_path / "hf"), "llama", generation=GENERATION)
    workdir = str(tmp_path / "w")
    convert.from_other(f"hf:{tmp_path}/hf", workdir)
    run, state, step = restore(workdir)
    assert step == 0 and set(state.params) == {"model"} and not state.ema
    chex.assert_trees_all_equal(jax.device_get(state.params["model"]), params)
    assert run.spec.tokenizer.to_library().to_str() == trained().to_library().to_str()
    assert run.spec.seq_len == 32 and run.config.data.seq_len == 32
    o = run.config.sample
    assert (o.temperature, o.top_p, o.top_k) == (0.7, 0.9, 5)
    assert run.config.raw["objective"]["name"] == "lm"
    assert run.objective.model.config.kv_heads == 1
    # What is fine-tuned begins with it, whatever else its own model has.
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), {"base": params})
    chex.assert_trees_all_equal(warm_start(workdir, blank), {"base": params})
    # How it is sampled counts only where its own settings say that it is.
    write(str(tmp_path / "plain"), "llama", generation=dict(temperature=0.7))
    convert.from_other(f"hf:{tmp_path}/plain", str(tmp_path / "p"))
    assert restore(str(tmp_path / "p"))[0].config.sample.temperature == 1.0


def test_an_encoder_becomes_a_masked_language_model(tmp_path):
    write(str(tmp_path / "hf"), "bert")
    convert.from_other(f"hf:{tmp_path}/hf", str(tmp_path / "w"))
    run, _, _ = restore(str(tmp_path / "w"))
    assert run.config.raw["objective"]["name"] == "masked_lm"
    tokenizer = run.spec.tokenizer
    assert (run.objective.mask, tokenizer.prefix, tokenizer.suffix) == (4, (2,), (3,))


def test_random_weights_without_a_tokenizer_read_bytes(tmp_path, capsys):
    config = TransformerConfig(**SIZE | MODELS["llama"], vocab_size=300)
    shapes = names.shapes(config)
    params = names.nested({k: np.ones(s, np.float32) for k, s in shapes.items()})
    interop.write_folder(str(tmp_path / "hf"), config, params)
    convert.from_other(f"hf:{tmp_path}/hf", str(tmp_path / "w"))
    assert "the model reads bytes" in runs.said(capsys)[0]
    assert restore(str(tmp_path / "w"))[0].spec.tokenizer.name == "byte"
    small = TransformerConfig(**SIZE | MODELS["llama"], vocab_size=200)
    params = names.nested({k: np.ones(s, np.float32) for k, s in names.shapes(small).items()})
    interop.write_folder(str(tmp_path / "small"), small, params)
    message = refusal(convert.from_other, f"hf:{tmp_path}/small", str(tmp_path / "v"))
    assert "holds no tokenizer.json" in message and not has_run(str(tmp_path / "v"))


@pytest.mark.parametrize(
    "source, named",
    [
        ("", "hf:DIR or gguf:FILE"),
        ("hf:", "hf:DIR or gguf:FILE"),
        ("/some/folder", "hf:DIR or gguf:FILE"),
        ("gguff:a.gguf", "did you mean 'gguf'?"),
        ("hf:nowhere", "config.json"),
        ("gguf:nowhere.gguf", "nowhere.gguf"),
    ],
)
def test_a_source_that_cannot_be_is_refused(source, named, tmp_path):
    workdir = str(tmp_path / "w")
    assert named in refusal(convert.from_other, source, workdir)
    assert not os.path.exists(workdir)


def test_workdirs_and_folders_in_use_are_left_alone(tmp_path):
    workdir = str(tmp_path / "w")
    write(str(tmp_path / "hf"), "gpt2")
    convert.from_other(f"hf:{tmp_path}/hf", workdir)
    before = runs.files(tmp_path)
    assert "holds a run already" in refusal(convert.from_other, f"hf:{tmp_path}/hf", workdir)
    assert "not an empty folder" in refusal(convert.to_other, workdir, f"hf:{tmp_path}/hf")
    assert "has no adapters" in refusal(convert.to_other, workdir, f"peft:{tmp_path}/peft")
    assert runs.files(tmp_path) == before


def test_only_transformers_over_text_are_given_out(monkeypatch):
    monkeypatch.setattr(convert, "restore", lambda workdir: (tiny.make("vae"), None, 0))
    assert "holds no transformer over text" in refusal(convert.to_other, "w", "hf:somewhere")
