"""Compares texts that a language model writes with the held-out ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from aigc_jax.core.capabilities import SupportsTextGeneration
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import TOKENS, task_of
from aigc_jax.data.source import Source
from aigc_jax.modalities.metric import EvaluatedModel, EvaluationContext, Metric
from aigc_jax.modalities.text.chat_format import ANSWER, Message, render, turn_end
from aigc_jax.modalities.text.eval_options import TextEval
from aigc_jax.modalities.text.metrics.text_metrics import diversity, score
from aigc_jax.modalities.text.tokenizers import Tokenizer

BATCH = 32  # texts written at once


class TextGeneration(Metric):
    """BLEU, chrF and ROUGE of generated against held-out texts, distinct-n and repetition.

    Of a conversation the last answer is generated; of other text the second half of a window, given
    the first. Tokens are drawn as the config's section `sample` says. Measured for
    `eval.text.num_generations` texts, spread over the held-out ones; 0: not at all.
    """

    def supports(self, context: EvaluationContext) -> bool:
        return task_of(context.spec) == TOKENS and _count(context) > 0

    def check(self, context: EvaluationContext) -> None:
        if not isinstance(context.objective, SupportsTextGeneration):
            raise UserError(
                f"objective '{context.objective_name}' does not generate text: set"
                " eval.text.num_generations=0"
            )
        score([], [])  # raises UserError without the libraries

    def __call__(self, context: EvaluationContext, model: EvaluatedModel) -> dict[str, Any]:
        objective, dataset, options = context.objective, context.dataset, context.sample
        assert isinstance(objective, SupportsTextGeneration)
        tokenizer = objective.tokenizer
        if dataset.dialogues:
            prompts, references = _answers(dataset.dialogues, tokenizer, _count(context))
            stop = (*options.stop, *turn_end(tokenizer))
            limit = options.max_new_tokens
        else:
            prompts, references = _continuations(dataset.validation, tokenizer, _count(context))
            stop = options.stop
            limit = max(1, *(len(tokenizer.encode(text)) for text in references))
        if objective.bounded:  # prompt and answer share the positions
            limit = min(limit, max(objective.context // 2, 1))
            prompts = [prompt[limit - objective.context :] for prompt in prompts]
        options = dataclasses.replace(options, max_new_tokens=limit, stop=stop, prompts=("",))
        written: list[str] = []
        for first in range(0, len(prompts), BATCH):
            batch = prompts[first : first + BATCH]
            samples = model.generate(
                len(batch),
                options=options,
                init=objective.encode_tokens(batch, limit),
                seed=first,
            )
            written += objective.texts(samples, options)
        return {**score(written, references), **diversity(written)}


def _count(context: EvaluationContext) -> int:
    assert isinstance(context.options, TextEval)
    return context.options.num_generations


def _spread(count: int, total: int) -> list[int]:
    """At most `count` of `total` indices, evenly."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()


def _answers(
    dialogues: Sequence[Sequence[Message]], tokenizer: Tokenizer, count: int
) -> tuple[list[np.ndarray], list[str]]:
    """Conversations up to their last answer, and that answer."""
    prompts, references = [], []
    for i in _spread(count, len(dialogues)):
        last = max(k for k, m in enumerate(dialogues[i]) if m["role"] == ANSWER)
        prompts.append(render(dialogues[i][:last], tokenizer, answer=True)[0])
        references.append(dialogues[i][last]["content"])
    return prompts, references


def _continuations(
    windows: Source, tokenizer: Tokenizer, count: int
) -> tuple[list[np.ndarray], list[str]]:
    """First halves of held-out windows, and the texts of the second."""
    prompts, references = [], []
    for i in _spread(count, len(windows)):
        example = windows[i]
        tokens = example["tokens"]
        if "segments" in example:  # the first of the documents that are packed there
            tokens = tokens[example["segments"] == 1]
        half = len(tokens) // 2
        prompts.append(tokens[:half])
        references.append(tokenizer.decode(tokens[half:]))
    return prompts, references
