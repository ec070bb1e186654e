"""Models of token sequences as families: causal, masked, classifying, tagging."""

from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import LABEL, TAGS, TOKENS
from aigc_jax.core.objective import Objective
from aigc_jax.core.registry import Registry
from aigc_jax.families.family import Family, Model, Parts
from aigc_jax.families.lm import language_model, masked_lm, text_task
from aigc_jax.families.lm.lstm import LSTM, LSTMConfig
from aigc_jax.families.lm.text_network import TextNetwork
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig

# Networks are `TextNetwork`s: (config, vocabulary size, context, dtype, number of task outputs).
TEXT_MODELS: Registry[Model] = Registry(
    "text_model",
    "model.name",
    {
        "transformer": Model(TransformerConfig, Transformer),
        "lstm": Model(LSTMConfig, LSTM),
    },
)


def _network(parts: Parts, entries: int, outputs: int = 0) -> TextNetwork:
    """The network for a tokenizer of `entries` entries, with `outputs` classes or tags."""
    model, spec = parts.model, parts.spec
    context, vocab_size = model.context or spec.seq_len, model.vocab_size or entries
    if spec.seq_len > context:
        raise UserError(
            f"data.seq_len={spec.seq_len} is longer than model.context={context}: lower it"
        )
    if vocab_size < entries:
        raise UserError(
            f"model.vocab_size={vocab_size} is less than the {entries} tokens that the text needs:"
            " raise it, or leave it at 0"
        )
    return parts.network(model, vocab_size, context, parts.dtype, outputs)


def _lm(parts: Parts) -> Objective:
    tokenizer = parts.spec.tokenizer
    network = _network(parts, tokenizer.size)
    return language_model.LanguageModel(parts.objective, network, tokenizer)


def _masked_lm(parts: Parts) -> Objective:
    tokenizer = parts.spec.tokenizer
    size, mask = tokenizer.size, tokenizer.mask
    entries = size + 1 if mask is None else size  # a tokenizer without a mask gets one
    network = _network(parts, entries)
    mask = size if mask is None else mask
    return masked_lm.MaskedLanguageModel(parts.objective, network, tokenizer, mask)


def _task_network(parts: Parts) -> TextNetwork:
    return _network(parts, parts.spec.tokenizer.size, len(parts.spec.class_names))


def _classification(parts: Parts) -> Objective:
    return text_task.TextClassification(parts.objective, _task_network(parts), parts.spec)


def _tagging(parts: Parts) -> Objective:
    return text_task.TokenTagging(parts.objective, _task_network(parts), parts.spec)


LM = Family(language_model.LMConfig, language_model.LMSample, TEXT_MODELS, _lm, (TOKENS,))
MASKED_LM = Family(
    masked_lm.MaskedLMConfig, masked_lm.MaskedLMSample, TEXT_MODELS, _masked_lm, (TOKENS,)
)
CLASSIFICATION = Family(
    text_task.TaskConfig, text_task.TaskSample, TEXT_MODELS, _classification, (LABEL,)
)
TAGGING = Family(text_task.TaskConfig, text_task.TaskSample, TEXT_MODELS, _tagging, (TAGS,))
