"""Other libraries' models as workdirs and back: the same bytes, or one sentence why not."""

import os

import chex
import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from helpers import runs, tiny
from helpers.hostile import refusal
from helpers.small_tokenizers import trained, wordpiece

from aigc_jax import interop
from aigc_jax.core.workdir import has_run
from aigc_jax.experiment.restore import restore
from aigc_jax.experiment.warm_start import warm_start
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.interop import convert
from aigc_jax.interop.transformers.read_folder import transformer_shapes

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
    leaves = {
        k: rng.normal(0, 0.2, s).astype(np.float32) for k, s in transformer_shapes(config).items()
    }
    params = unflatten_dict(leaves, sep="/")
    specials = dict(pad=0, unk=1, cls=2, sep=3, mask=4) if bert else dict(bos=0, eos=[0, 2])
    interop.write_hf_folder(
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
    convert.import_model(f"hf:{first}", workdir)
    assert convert.export_model(workdir, f"hf:{again}") == again
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
    convert.import_model(f"hf:{tmp_path}/hf", workdir)
    run, state, step = restore(workdir)
    assert step == 0 and set(state.params) == {"model"} and not state.ema
    chex.assert_trees_all_equal(jax.device_get(state.params["model"]), params)
    assert run.spec.tokenizer.to_library().to_str() == trained().to_library().to_str()
    assert run.spec.seq_len == 32 and run.config.data.seq_len == 32
    o = run.config.sample
    assert (o.temperature, o.top_p, o.top_k) == (0.7, 0.9, 5)
    assert run.config.raw["objective"]["name"] == "lm"
    assert run.objective.network.config.kv_heads == 1
    # What is fine-tuned begins with it, whatever else its own model has.
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), {"base": params})
    chex.assert_trees_all_equal(warm_start(workdir, blank), {"base": params})
    # How it is sampled counts only where its own settings say that it is.
    write(str(tmp_path / "plain"), "llama", generation=dict(temperature=0.7))
    convert.import_model(f"hf:{tmp_path}/plain", str(tmp_path / "p"))
    assert restore(str(tmp_path / "p"))[0].config.sample.temperature == 1.0


def test_an_encoder_becomes_a_masked_language_model(tmp_path):
    write(str(tmp_path / "hf"), "bert")
    convert.import_model(f"hf:{tmp_path}/hf", str(tmp_path / "w"))
    run, _, _ = restore(str(tmp_path / "w"))
    assert run.config.raw["objective"]["name"] == "masked_lm"
    tokenizer = run.spec.tokenizer
    assert (run.objective.mask, tokenizer.prefix, tokenizer.suffix) == (4, (2,), (3,))


def test_random_weights_without_a_tokenizer_read_bytes(tmp_path, capsys):
    config = TransformerConfig(**SIZE | MODELS["llama"], vocab_size=300)
    shapes = transformer_shapes(config)
    params = unflatten_dict({k: np.ones(s, np.float32) for k, s in shapes.items()}, sep="/")
    interop.write_hf_folder(str(tmp_path / "hf"), config, params)
    convert.import_model(f"hf:{tmp_path}/hf", str(tmp_path / "w"))
    assert "the model reads bytes" in runs.said(capsys)[0]
    assert restore(str(tmp_path / "w"))[0].spec.tokenizer.name == "byte"
    small = TransformerConfig(**SIZE | MODELS["llama"], vocab_size=200)
    params = unflatten_dict(
        {k: np.ones(s, np.float32) for k, s in transformer_shapes(small).items()}, sep="/"
    )
    interop.write_hf_folder(str(tmp_path / "small"), small, params)
    message = refusal(convert.import_model, f"hf:{tmp_path}/small", str(tmp_path / "v"))
    assert "tokenizer.json" in message and not has_run(str(tmp_path / "v"))


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
    assert named in refusal(convert.import_model, source, workdir)
    assert not os.path.exists(workdir)


def test_workdirs_and_folders_in_use_are_left_alone(tmp_path):
    workdir = str(tmp_path / "w")
    write(str(tmp_path / "hf"), "gpt2")
    convert.import_model(f"hf:{tmp_path}/hf", workdir)
    before = runs.files(tmp_path)
    assert "choose another --workdir" in refusal(convert.import_model, f"hf:{tmp_path}/hf", workdir)
    assert "not an empty folder" in refusal(convert.export_model, workdir, f"hf:{tmp_path}/hf")
    assert "has no adapters" in refusal(convert.export_model, workdir, f"peft:{tmp_path}/peft")
    assert runs.files(tmp_path) == before


def test_only_text_transformers_are_exported(monkeypatch):
    monkeypatch.setattr(convert, "restore", lambda workdir: (tiny.make("vae"), None, 0))
    assert "model.name" in refusal(convert.export_model, "w", "hf:somewhere")


# Adapters ------------------------------------------------------------------------------------


def adapters_of(folder, base, base_name, **changes):
    """A folder of PEFT for the model in `base`; returns the model's config and the factors."""
    model = interop.read_hf_folder(base).model | changes
    targets, rank = ("query", "down"), 3
    config = TransformerConfig(**model, lora_rank=rank, lora_alpha=5.0, lora_targets=targets)
    rng, leaves = np.random.default_rng(1), {}
    for path in ("attention/query", "mlp/out"):
        layers, inputs, outputs = transformer_shapes(config)[f"layers/{path}/kernel"]
        for name, shape in dict(lora_a=(inputs, rank), lora_b=(rank, outputs)).items():
            leaf = rng.normal(0, 0.3, (layers, *shape)).astype(np.float32)
            leaves[f"layers/{path}/{name}"] = leaf
    lora = unflatten_dict(leaves, sep="/")
    interop.write_peft_folder(folder, config, lora, base_name)
    return config, lora


def test_adapters_become_a_run_with_a_frozen_base(tmp_path):
    base, peft, workdir = (str(tmp_path / n) for n in ("hf", "peft", "w"))
    params = write(base, "llama")
    config, factors = adapters_of(peft, base, base)
    convert.import_model(f"peft:{peft}", workdir)
    run, state, step = restore(workdir)
    assert step == 0 and run.objective.turns == ("model",)
    assert set(state.params) == {"base", "model"}
    chex.assert_trees_all_equal(jax.device_get(state.params["base"]), params)
    chex.assert_trees_all_equal(jax.device_get(state.params["model"]), {"lora": factors})

    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    model = Transformer(config, config.vocab_size, config.context)
    wanted, _ = jax.jit(model.apply)({"params": params, "lora": factors}, tokens)
    found, _ = jax.jit(run.objective.network.apply)(lora.join_variables(state.params), tokens)
    np.testing.assert_array_equal(found, wanted)

    convert.export_model(workdir, f"peft:{tmp_path}/again")
    assert contents(peft) == contents(tmp_path / "again")
    convert.export_model(workdir, f"hf:{tmp_path}/merged")
    merged = interop.read_hf_folder(str(tmp_path / "merged"))
    plain = Transformer(TransformerConfig(**merged.model), config.vocab_size, config.context)
    found, _ = jax.jit(plain.apply)({"params": merged.params}, tokens)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def contents(folder):
    return {os.path.relpath(path, folder): c for path, c in runs.files(str(folder)).items()}


def test_the_base_of_adapters_is_given_or_named_by_them(tmp_path):
    base, peft, workdir = (str(tmp_path / n) for n in ("hf", "peft", "w"))
    write(base, "llama")
    adapters_of(peft, base, "someone/elsewhere")
    assert "--base=hf:DIR" in refusal(convert.import_model, f"peft:{peft}", workdir)
    assert "--base=llama" in refusal(convert.import_model, f"peft:{peft}", workdir, "llama")
    assert "--base" in refusal(convert.import_model, f"hf:{base}", workdir, f"hf:{base}")
    write(str(tmp_path / "other"), "gpt2")
    other = f"hf:{tmp_path}/other"
    assert "gpt2" in refusal(convert.import_model, f"peft:{peft}", workdir, other)
    adapters_of(f"{peft}2", base, "", width=16, head_dim=0)
    wrong = refusal(convert.import_model, f"peft:{peft}2", workdir, f"hf:{base}")
    assert "attention/query" in wrong
    assert not has_run(workdir)
    convert.import_model(f"peft:{peft}", workdir, f"hf:{base}")
    assert set(restore(workdir)[1].params) == {"base", "model"}


# Forms of other packages ---------------------------------------------------------------------


def test_a_form_of_another_package_is_registered_by_its_name(tmp_path, monkeypatch):
    write(str(tmp_path / "hf"), "gpt2")
    monkeypatch.setattr(convert.IMPORTERS, "_items", dict(convert.IMPORTERS))
    form = convert.ImportForm("DIR", convert.IMPORTERS["hf"].read)
    convert.IMPORTERS.register("own", form)
    convert.import_model(f"own:{tmp_path}/hf", str(tmp_path / "w"))
    assert has_run(str(tmp_path / "w"))
    assert "own:DIR" in refusal(convert.import_model, "", str(tmp_path / "v"))
