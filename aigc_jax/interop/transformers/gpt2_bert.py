"""GPT-2 and BERT: layer norm, biases everywhere, learned positions."""

from aigc_jax.interop.mapping import (
    TensorRule,
    layer_modules,
    setting,
    words,
)
from aigc_jax.interop.transformers.table import ACTIVATIONS, DIVISIBLE, Architecture

ONE_WIDTH = {"kv_heads": lambda f: f["heads"], "head_dim": lambda f: f["width"] // f["heads"]}
GPT2_PLAIN = dict(
    norm="layernorm", gated=False, positions="learned", qkv_bias=True, out_bias=True, mlp_bias=True
)  # fmt: skip
GPT2 = Architecture(
    hf="gpt2",
    model="GPT2LMHeadModel",
    prefix="transformer.",
    settings=(
        setting("vocab_size", "vocab_size"),
        setting("n_embd", "width"),
        setting("n_layer", "layers"),
        setting("n_head", "heads"),
        setting("n_positions", "context"),
        setting("n_inner", "mlp_width", default=None, null=0),
        setting(
            "activation_function",
            "activation",
            default="gelu_new",
            values=(("gelu_new", "gelu"), *ACTIVATIONS),
        ),
        setting("layer_norm_epsilon", "norm_eps", default=1e-5),
        setting(
            "scale_attn_weights",
            "attention_scale",
            default=True,
            values=((True, 0.0), (False, 1.0)),
        ),
        setting("tie_word_embeddings", "tie_embeddings", default=True),
    ),
    # Its kernels are (in, out) like ours, and query, key and value are one.
    rules=(
        TensorRule("transformer.wte.weight", ("token_embedding/embedding",)),
        TensorRule("transformer.wpe.weight", ("position_embedding/embedding",)),
        TensorRule("transformer.ln_f.weight", ("final_norm/scale",)),
        TensorRule("transformer.ln_f.bias", ("final_norm/bias",)),
        TensorRule("lm_head.weight", ("head_embedding/kernel",), True),
        *layer_modules(
            "transformer.h.",
            ("attn.c_attn", "attention/query attention/key attention/value"),
            ("attn.c_proj", "attention/out"),
            ("mlp.c_fc", "mlp/in"),
            ("mlp.c_proj", "mlp/out"),
            ("ln_1", "attention_norm"),
            ("ln_2", "mlp_norm"),
            transposed=False,
        ),
    ),
    aigc_fixed=GPT2_PLAIN,
    derived=ONE_WIDTH,
    needs=DIVISIBLE,
    hf_fixed={"scale_attn_by_inverse_layer_idx": (False,)},
    ignored=words(
        "n_ctx reorder_and_upcast_attn attn_pdrop embd_pdrop resid_pdrop summary_activation"
        " summary_first_dropout summary_proj_to_labels summary_type summary_use_proj"
    ),
    dropouts=("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    copies={"lm_head.weight": "transformer.wte.weight"},
    buffers=(r".*\.attn\.(bias|masked_bias)",),
    rope_theta=0.0,
)
BERT = Architecture(
    hf="bert",
    model="BertForMaskedLM",
    headless="BertModel",
    head="cls.predictions.",
    prefix="bert.",
    settings=(
        setting("vocab_size", "vocab_size"),
        setting("hidden_size", "width"),
        setting("num_hidden_layers", "layers"),
        setting("num_attention_heads", "heads"),
        setting("intermediate_size", "mlp_width"),
        setting("max_position_embeddings", "context"),
        setting("type_vocab_size", "token_types", default=2),
        setting("layer_norm_eps", "norm_eps", default=1e-12),
    ),
    rules=(
        TensorRule("bert.embeddings.word_embeddings.weight", ("token_embedding/embedding",)),
        TensorRule("bert.embeddings.position_embeddings.weight", ("position_embedding/embedding",)),
        TensorRule("bert.embeddings.token_type_embeddings.weight", ("type_embedding/embedding",)),
        TensorRule("bert.embeddings.LayerNorm.weight", ("embedding_norm/scale",)),
        TensorRule("bert.embeddings.LayerNorm.bias", ("embedding_norm/bias",)),
        *layer_modules(
            "bert.encoder.layer.",
            ("attention.self.query", "attention/query"),
            ("attention.self.key", "attention/key"),
            ("attention.self.value", "attention/value"),
            ("attention.output.dense", "attention/out"),
            ("attention.output.LayerNorm", "attention_norm"),
            ("intermediate.dense", "mlp/in"),
            ("output.dense", "mlp/out"),
            ("output.LayerNorm", "mlp_norm"),
        ),
        TensorRule("cls.predictions.transform.dense.weight", ("head_transform/kernel",), True),
        TensorRule("cls.predictions.transform.dense.bias", ("head_transform/bias",)),
        TensorRule("cls.predictions.transform.LayerNorm.weight", ("head_norm/scale",)),
        TensorRule("cls.predictions.transform.LayerNorm.bias", ("head_norm/bias",)),
        TensorRule("cls.predictions.bias", ("head_bias/bias",)),
    ),
    aigc_fixed=GPT2_PLAIN
    | dict(causal=False, norm_position="post", embedding_norm=True, activation="gelu_exact"),
    derived=ONE_WIDTH | {"head_bias": lambda f: f["head_transform"]},
    needs=(*DIVISIBLE, ("a model.token_types of at least 1", lambda f: f["token_types"] > 0)),
    hf_fixed={
        "hidden_act": ("gelu",),
        "tie_word_embeddings": (True,),
        "is_decoder": (False,),
        "position_embedding_type": ("absolute",),
    },
    ignored=words(
        "attention_probs_dropout_prob hidden_dropout_prob directionality pooler_fc_size"
        " pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type"
    ),
    dropouts=("attention_probs_dropout_prob", "hidden_dropout_prob"),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    renamed={r"LayerNorm\.gamma": "LayerNorm.weight", r"LayerNorm\.beta": "LayerNorm.bias"},
    buffers=(r".*embeddings\.(position_ids|token_type_ids)",),
    unread=(
        (r"(bert\.)?pooler\..*", "the pooler"),
        (r"cls\.seq_relationship\..*", "the next-sentence head"),
    ),
    rope_theta=0.0,
)
