"""What an architecture's table says (`architectures`), and what holds for all of them.

A `Weight` joins a tensor's name to paths in our parameters, a `Setting` a key of config.json to
fields of `TransformerConfig`. Names and keys are those of Hugging Face's transformers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

REQUIRED = object()  # a key that config.json must have


@dataclasses.dataclass(frozen=True)
class Weight:
    """One of their tensors, or one per layer.

    Attributes:
      theirs: its name; `{layer}` stands for a layer's number, and ours is then stacked.
      ours: paths in our parameters; several lie side by side along the outputs of their tensor.
      transposed: whether theirs is (out, in), while a kernel of ours is (in, out).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.theirs

    @property
    def is_kernel(self) -> bool:
        return self.ours[0].endswith("/kernel")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of config.json.

    Attributes:
      theirs: the key.
      ours: the fields that it sets, all alike.
      default: what transformers takes if config.json lacks the key.
      null: what ours is if theirs is null.
      values: pairs of their value and ours, if they differ; the first that fits is written.
      read: ours from theirs, if no table can say it.
      write: theirs from ours and all fields; `REQUIRED`: it cannot be said.
    """

    theirs: str
    ours: tuple[str, ...]
    default: Any = REQUIRED
    null: Any = REQUIRED
    values: tuple[tuple[Any, Any], ...] = ()
    read: Callable[[Any], Any] | None = None
    write: Callable[[Any, Mapping[str, Any]], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One `model_type`.

    Attributes:
      name: `model_type`.
      model: transformers' class with the head of a language model.
      headless: its class without one, if we read that too.
      prefix: of the names of all tensors but the head's; it may be missing in a file.
      settings: keys of config.json that set fields.
      weights: its tensors; those whose paths our parameters lack are not there.
      ours: the values of fields that the architecture cannot have otherwise.
      derived: fields that follow from others.
      needs: what must hold of the fields besides, in words.
      theirs: keys of config.json with the values that change nothing.
      ignored: keys of config.json without an effect on the logits, beyond `IGNORED`.
      dropouts: keys for the rate of dropout.
      copies: tensors that are another one's copy if the embeddings are tied.
      renamed: how names of tensors end in old files, and how they end now.
      buffers: regular expressions of tensors that are no parameters.
      unread: regular expressions of tensors that we have no use for, and what they are.
      head: how the names of the head's tensors begin, if a file may lack the head.
      rope_theta: the default; 0: no rotary positions.
      windows: which layers a window is for: "" none, "all", "chosen" by config.json, or
        "alternating" from the first.
    """

    name: str
    model: str
    prefix: str
    settings: tuple[Setting, ...]
    weights: tuple[Weight, ...]
    ours: Mapping[str, Any]
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(
        default_factory=dict
    )
    needs: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = ()
    theirs: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    dropouts: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    headless: str = ""
    head: str = ""
    rope_theta: float = 10_000.0
    windows: str = ""


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields of TransformerConfig that change what a model computes, at what most models have.
PLAIN = dict(
    causal=True, positions="rotary", rope_theta=10_000.0, rope_scaling="none", rope_factor=1.0,
    rope_original_context=0, rope_low_freq_factor=1.0, rope_high_freq_factor=4.0,
    rope_beta_fast=32.0, rope_beta_slow=1.0, norm="rmsnorm", norm_position="pre", norm_eps=1e-6,
    norm_bias=True, norm_scale=True, norm_offset=False, embedding_norm=False, qk_norm=False,
    activation="silu", gated=True, qkv_bias=False, out_bias=False, mlp_bias=False, conv_width=1,
    sliding_window=0, full_attention_every=0, attention_scale=0.0, attention_softcap=0.0,
    logit_scale=1.0, logit_softcap=0.0, residual_scale=1.0, embedding_scale=1.0,
    tie_embeddings=True, token_types=0, head_transform=False, head_bias=False,
)  # fmt: skip
SIZES = (
    "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "context", "vocab_size"
)  # fmt: skip

# Keys of config.json that say how a model is trained, stored or used, not what it computes.
IGNORED = words(
    """
    architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path
    use_cache return_dict return_dict_in_generate output_attentions output_hidden_states
    output_scores use_return_dict torchscript use_bfloat16 chunk_size_feed_forward
    gradient_checkpointing initializer_range pretraining_tp attn_implementation
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id tokenizer_class
    model_max_length id2label label2id num_labels problem_type finetuning_task
    task_specific_params prefix max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens tf_legacy_loss tie_encoder_decoder cross_attention_hidden_size
    classifier_dropout attention_dropout cache_implementation is_llama_config
    transformers.js_config unsloth_fixed unsloth_version _commit_hash _num_labels
    _flash_attn_2_enabled output_past n_special predict_special_tokens max_sequence_length
    """
)
# And those that do, with the values that change nothing; any other key must be known.
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,), "is_decoder": (False, True), "add_cross_attention": (False,),
    "pruned_heads": ({},), "partial_rotary_factor": (1,), "rope_interleaved": (False,),
    "use_mrope": (False,),
}  # fmt: skip
ACTIVATIONS = (
    ("silu", "silu"), ("swish", "silu"), ("gelu_pytorch_tanh", "gelu"), ("gelu_new", "gelu"),
    ("gelu_fast", "gelu"), ("gelu", "gelu_exact"), ("relu", "relu"), ("relu2", "relu2"),
)  # fmt: skip


def setting(theirs: str, *ours: str, **kw: Any) -> Setting:
    return Setting(theirs, ours, **kw)


def layer_weights(
    prefix: str, *rows: tuple[str, str], transposed: bool = True
) -> tuple[Weight, ...]:
    """Weights of a layer from rows of a name and paths: kernels with their biases, or norms."""
    weights = []
    for theirs, paths in rows:
        theirs, kernel = f"{prefix}{{layer}}.{theirs}", not paths.endswith("norm")
        ours = [f"layers/{path}" for path in paths.split()]
        weight = tuple(f"{path}/{'kernel' if kernel else 'scale'}" for path in ours)
        weights.append(Weight(f"{theirs}.weight", weight, kernel and transposed))
        weights.append(Weight(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours)))
    return tuple(weights)


DIVISIBLE = (
    ("a model.width divisible by model.heads", lambda f: f["width"] % f["heads"] == 0),
)  # fmt: skip
