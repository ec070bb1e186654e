"""The transformer once more, in plain NumPy and float64: a document, a head, a token at a time.

Shapes: T tokens, W width, D head size.
"""

import math

import numpy as np

ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def logits(c, params, tokens):
    """(T, V) for one document.

    Args:
      c: `TransformerConfig`.
      params: the collection "params".
      tokens: of the document.
    """
    x = embed(c, params, tokens)
    for i in range(c.layers):
        x = layer(c, part(params["layers"], i), x, c.windows()[i])
    if c.norm_position != "post":
        x = norm(c, params.get("final_norm"), x)
    if c.head_transform:
        x = ACTIVATIONS["gelu_exact"](linear(params["head_transform"], x))
        x = norm(c, params.get("head_norm"), x)
    embedding = params["token_embedding"]["embedding"]
    y = x @ (embedding.T if c.tie_embeddings else params["head_embedding"]["kernel"])
    if c.head_bias:
        y = y + params["head_bias"]["bias"]
    y = y * c.logit_scale
    return c.logit_softcap * np.tanh(y / c.logit_softcap) if c.logit_softcap else y


def part(tree, i):
    """One layer's arrays, float64."""
    if isinstance(tree, dict):
        return {k: part(v, i) for k, v in tree.items()}
    return np.asarray(tree[i], np.float64)


def embed(c, params, tokens):
    x = c.embedding_scale * np.asarray(params["token_embedding"]["embedding"], np.float64)[tokens]
    if c.positions == "learned":
        x = x + params["position_embedding"]["embedding"][: len(tokens)]
    if c.token_types:
        x = x + params["type_embedding"]["embedding"][0]
    return norm(c, params.get("embedding_norm"), x) if c.embedding_norm else x


def layer(c, p, x, window):
    for name, branch in (("attention", lambda y: attend(c, p["attention"], y, window)),
                         ("mlp", lambda y: perceptron(c, p["mlp"], y))):  # fmt: skip
        y = x if c.norm_position == "post" else norm(c, p.get(f"{name}_norm"), x)
        if c.conv_width > 1:
            y = mixed(p[f"{name}_conv"]["taps"], y)
        y = branch(y)
        if c.norm_position == "both":
            y = norm(c, p.get(f"{name}_out_norm"), y)
        x = x + c.residual_scale * y
        if c.norm_position == "post":
            x = norm(c, p.get(f"{name}_norm"), x)
    return x


def norm(c, p, x):
    if c.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    y = rms(c, p, x)
    return y + p["bias"] if c.norm == "layernorm" and c.norm_bias else y


def rms(c, p, x):
    scale = p["scale"] + c.norm_offset if c.norm_scale else 1
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def mixed(taps, x):
    return np.array(
        [
            x[t] + sum(taps[i] * x[t - i] for i in range(min(len(taps), t + 1)))
            for t in range(len(x))
        ]
    )


def perceptron(c, p, x):
    act, y = ACTIVATIONS[c.activation], linear(p["in"], x)
    return linear(p["out"], act(linear(p["gate"], x)) * y if c.gated else act(y))


def attend(c, p, x, window):
    size, shared = c.head_size, c.heads // c.key_heads
    q, k, v = (linear(p[name], x) for name in ("query", "key", "value"))
    out = np.zeros((len(x), c.heads * size))
    for h in range(c.heads):
        mine, theirs = (slice(i * size, (i + 1) * size) for i in (h, h // shared))
        qs, ks, vs = q[:, mine], k[:, theirs], v[:, theirs]
        if c.qk_norm:
            qs, ks = rms(c, p.get("query_norm"), qs), rms(c, p.get("key_norm"), ks)
        if c.positions == "rotary":
            qs, ks = turned(c, qs), turned(c, ks)
        for t in range(len(x)):
            seen = [s for s in range(len(x)) if sees(c, t, s, window)]
            a = ks[seen] @ qs[t] * (c.attention_scale or size**-0.5)
            if c.attention_softcap:
                a = c.attention_softcap * np.tanh(a / c.attention_softcap)
            a = np.exp(a - a.max())
            out[t, mine] = a / a.sum() @ vs[seen]
    return linear(p["out"], out)


def sees(c, t, s, window):
    return (s <= t or not c.causal) and (not window or abs(t - s) < window)


def turned(c, x):
    """Pairs (i, i + D/2) as complex numbers, turned by position · frequency."""
    half = c.head_size // 2
    numbers = x[:, :half] + 1j * x[:, half:]
    pairs = [frequency(c, i) for i in range(half)]
    numbers = numbers * np.exp(1j * np.outer(np.arange(len(x)), pairs))
    if c.rope_scaling == "yarn":
        numbers = numbers * (0.1 * math.log(c.rope_factor) + 1)
    return np.concatenate([numbers.real, numbers.imag], -1)


def frequency(c, i):
    """Radians per position of pair i."""
    kept = c.rope_theta ** (-2 * i / c.head_size)
    if c.rope_scaling == "none":
        return kept
    if c.rope_scaling == "linear":
        return kept / c.rope_factor
    if c.rope_scaling == "llama3":
        turns = c.rope_original_context * kept / (2 * math.pi)
        low, high = c.rope_low_freq_factor, c.rope_high_freq_factor
        share = min(max((turns - low) / (high - low), 0), 1)
        return kept * share + kept / c.rope_factor * (1 - share)

    def pair(turns):  # which pair turns so often in the original context
        wave = c.rope_original_context / (turns * 2 * math.pi)
        return c.head_size * math.log(wave) / (2 * math.log(c.rope_theta))

    low = max(math.floor(pair(c.rope_beta_fast)), 0)
    high = min(math.ceil(pair(c.rope_beta_slow)), c.head_size - 1)
    share = min(max((i - low) / (high - low), 0), 1)
    return kept / c.rope_factor * share + kept * (1 - share)
