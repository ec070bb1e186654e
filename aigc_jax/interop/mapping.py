"""The mapping language: a table per model class of another library, read in both directions.

A table says which tensors of the library hold which of our parameters, in which layout
(`TensorRule`), which keys of its config file hold which fields of our config (`Setting`), and which
keys and fields are fixed, ignored or required (`ModelTable`). `interop.parameters` applies the
tensor rules, `interop.settings` the settings; `interop.transformers`, `interop.diffusers` and
`interop.gguf` consist of tables. `hf` is the library's side, `aigc` is ours.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

Fields = dict[str, Any]  # of a model's config dataclass, by name
REQUIRED: Final = object()  # a key that the config file must have; a value that has no equivalent

# Leaves of our modules and what PyTorch calls them.
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """One tensor of the library, or one per layer.

    Attributes:
      hf: its name; `{layer}` stands for the layer's number, and our parameter is stacked over
        layers.
      aigc: paths of our parameters; several are joined along the last axis of ours.
      transposed: whether the library stores (out, in, *window) where we store (*window, in, out).
      layer: index into a parameter of ours that is stacked, if `hf` names one layer only.
      part: (i, n): it is the i-th of n equal parts of ours along the last axis; None: all of it.
      rotary_heads: field with the number of heads, if the rows of each head are stored as pairs
        that are rotated together (llama.cpp) instead of as two halves; "": they are not.
    """

    hf: str
    aigc: tuple[str, ...]
    transposed: bool = False
    layer: int | None = None
    part: tuple[int, int] | None = None
    rotary_heads: str = ""

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.hf

    @property
    def is_kernel(self) -> bool:
        return self.aigc[0].endswith("/kernel")

    @property
    def hf_module(self) -> str:
        """Returns the library's module that has this tensor as its weight."""
        return self.hf.removesuffix(".weight")

    @property
    def aigc_modules(self) -> list[str]:
        """Returns our modules that have these kernels."""
        return [path.removesuffix("/kernel") for path in self.aigc]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of the library's config file.

    Attributes:
      hf: the key.
      aigc: the fields of ours that it sets, all to the same value.
      default: value that the library takes if the file lacks the key; `REQUIRED`: none.
      null: our value for null; `REQUIRED`: null is a value like others.
      values: pairs of the library's value and ours, where they differ; the first that fits is
        written.
      read: our value from the library's, where `values` cannot say it.
      write: the library's value from ours and all our fields; `REQUIRED`: there is none.
    """

    hf: str
    aigc: tuple[str, ...]
    default: Any = REQUIRED
    null: Any = REQUIRED
    values: tuple[tuple[Any, Any], ...] = ()
    read: Callable[[Any], Any] | None = None
    write: Callable[[Any, Mapping[str, Any]], Any] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelTable:
    """One model class of another library.

    Attributes:
      hf: its name in the config file: `model_type` or `_class_name`.
      config: dataclass of our config section `model`.
      settings: keys of the config file that set fields of ours.
      hf_fixed: keys of the config file with the values that are supported, the first of which is
        written unless it is None.
      no_op: keys that are not written, with the values at which they have no effect.
      aigc_fixed: fields of ours that the class has at one value only.
      ignored: keys of the config file without an effect on the output.
      derived: fields of ours that follow from others.
      needs: other conditions on our fields, each with its wording for "it needs …".
      limits: largest value of each size, far beyond any real model: a file that claims more is
        refused before memory is taken.
      buffers: regular expressions of tensors that are not parameters.
    """

    hf: str
    config: type[Any]
    settings: tuple[Setting, ...]
    hf_fixed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    no_op: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    aigc_fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(
        default_factory=dict
    )
    needs: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = ()
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)
    buffers: tuple[str, ...] = ()


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def setting(hf: str, *aigc: str, **kw: Any) -> Setting:
    return Setting(hf, aigc, **kw)


def module(
    hf: str,
    *aigc: str,
    leaves: tuple[str, ...] = tuple(LEAVES),
    transposed: bool = True,
    layer: int | None = None,
    part: tuple[int, int] | None = None,
) -> tuple[TensorRule, ...]:
    """Returns the rules for weight and bias of a module.

    Args:
      hf: the library's module, dots between names; `{layer}` as in `TensorRule`.
      aigc: our module, slashes between names; several are joined.
      leaves: the leaves that ours may have; a rule whose leaf is not there does not apply.
      transposed: whether the library's kernels are (out, in, *window).
      layer: as in `TensorRule`.
      part: as in `TensorRule`.
    """
    return tuple(
        TensorRule(
            f"{hf}.{LEAVES[leaf]}",
            tuple(f"{path}/{leaf}" for path in aigc),
            transposed and leaf == "kernel",
            layer,
            part,
        )
        for leaf in leaves
    )


def layer_modules(
    prefix: str, *rows: tuple[str, str], transposed: bool = True
) -> tuple[TensorRule, ...]:
    """Returns the rules of a transformer's layers.

    Args:
      prefix: of the library's names, up to the layer's number.
      rows: the library's module within a layer, and ours, separated by spaces if several are
        joined; those that end in "norm" have a scale, others a kernel.
      transposed: whether the library's kernels are (out, in).
    """
    rules: list[TensorRule] = []
    for hf, paths in rows:
        leaves = ("scale" if paths.endswith("norm") else "kernel", "bias")
        aigc = [f"layers/{path}" for path in paths.split()]
        rules += module(f"{prefix}{{layer}}.{hf}", *aigc, leaves=leaves, transposed=transposed)
    return tuple(rules)


# Keys of config files that say how a model is trained, stored or used, not what it computes.
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
