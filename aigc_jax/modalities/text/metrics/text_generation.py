"""What a language model writes, beside what stands in the held-out text."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from aigc_jax.core.state import TrainState
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.source import Source
from aigc_jax.experiment.build import Run
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.inference.stop_strings import StopStringStreamer
from aigc_jax.modalities.text.chat_format import ANSWER, Message, render, turn_end
from aigc_jax.modalities.text.metrics.text_metrics import diversity, score
from aigc_jax.modalities.text.tokenizers import Tokenizer

BATCH = 32  # texts written at once


def score_answers(run: Run, dataset: Dataset, state: TrainState, count: int) -> dict[str, float]:
    """BLEU, chrF and ROUGE of generated against held-out texts, distinct-n and repetition.

    Of a conversation the last answer is written anew; of other text the second half of a window,
    given the first. How tokens are drawn is the recipe's `sample` section.

    Args:
      run: its parts; the family continues prompts.
      dataset: its data.
      state: what to evaluate.
      count: how many texts, spread over the held-out ones.

    Raises:
      UserError: without the extra `eval`.
    """
    score([], [])  # without the libraries it is of no use to write anything
    options, tokenizer = run.config.sample, run.spec.tokenizer
    if dataset.dialogues:
        prompts, references = _answers(dataset.dialogues, tokenizer, count)
        stop = (*options.stop, *turn_end(tokenizer))
        limit = options.max_new_tokens
    else:
        prompts, references = _continuations(dataset.validation, tokenizer, count)
        stop, limit = options.stop, max(1, *(len(tokenizer.encode(text)) for text in references))
    context = run.objective.context
    if run.objective.bounded:  # prompt and answer share what the positions reach
        limit = min(limit, max(context // 2, 1))
        prompts = [prompt[limit - context :] for prompt in prompts]
    options = dataclasses.replace(options, max_new_tokens=limit, stop=stop, prompts=("",))
    params, mutables = jax.device_get((state.sampling_params, state.mutables))
    written = []
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        watch = StopStringStreamer(tokenizer, stop) if stop else None
        init = run.objective.encode_tokens(batch, limit)
        request = make_request(run.objective, options, len(batch), init=init, token_callback=watch)
        samples = generate(run.objective, params, mutables, request, first)
        written += run.objective.texts(samples, options)
    return {**score(written, references), **diversity(written)}


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
