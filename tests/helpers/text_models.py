"""Small text models that other libraries have too."""

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from aigc_jax import interop
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.transformers.read_folder import transformer_shapes

SIZE = dict(layers=2, width=16, heads=4, context=32, vocab_size=19)
LLAMA = SIZE | dict(kv_heads=2, gated=True, activation="silu", mlp_width=24)
GPT2 = SIZE | dict(
    norm="layernorm", positions="learned", activation="gelu", qkv_bias=True, out_bias=True,
    mlp_bias=True,
)  # fmt: skip
GEMMA = LLAMA | dict(norm_offset=True, embedding_scale=4.0, activation="gelu")
MODELS = {
    "llama": LLAMA | dict(tie_embeddings=False),
    "mistral": LLAMA | dict(sliding_window=5),
    "qwen2": LLAMA | dict(qkv_bias=True, head_dim=6),
    "qwen3": LLAMA | dict(qk_norm=True, sliding_window=4, full_attention_every=2),
    "gpt2": GPT2,
    "bert": GPT2 | dict(
        causal=False, norm_position="post", embedding_norm=True, activation="gelu_exact",
        token_types=2, head_transform=True, head_bias=True),
    "gemma": GEMMA,
    "gemma2": GEMMA | dict(
        norm_position="both", logit_softcap=30.0, attention_softcap=50.0, sliding_window=8,
        full_attention_every=2, attention_scale=12**-0.5),
}  # fmt: skip


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)
    shapes = transformer_shapes(config)
    return unflatten_dict(
        {k: rng.normal(0, 0.2, v).astype(np.float32) for k, v in shapes.items()}, sep="/"
    )


def assert_same(a, b):
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], path)


def folder_of(tmp_path, name="llama", **changes):
    """A folder that `write_folder` has written, its config.json and its tensors."""
    config = TransformerConfig(**MODELS[name] | changes)
    folder = str(tmp_path / "model")
    interop.write_hf_folder(folder, config, random_params(config))
    return folder
