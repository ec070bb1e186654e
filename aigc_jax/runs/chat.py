"""Chat with a language model in a terminal, in the ChatML format."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from aigc_jax.core.capabilities import SupportsTextGeneration
from aigc_jax.core.errors import UserError
from aigc_jax.experiment import build
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.experiment.restore import restore
from aigc_jax.inference.stop_strings import StopStringStreamer, truncate_at_stop
from aigc_jax.modalities.text.chat_format import ANSWER, Message, render, turn_end

HELP = "type a message; /reset clears the conversation, /exit or Ctrl-D ends the chat"


class Chat:
    """A conversation with a workdir's model.

    Args:
      workdir: a run of a language model trained on conversations.
      system: the system message; if empty, there is none.
      seed: random seed of the answers.
      **options: fields of the family's `sample` section, such as `temperature`.

    Raises:
      UserError: if there is no checkpoint, no language model, or an unknown option.
    """

    def __init__(self, workdir: str, system: str = "", seed: int = 0, **options: Any):
        run, state, _ = restore(workdir, optimizer=False)
        if not isinstance(run.objective, SupportsTextGeneration):
            name = run.config.raw["objective"]["name"]
            raise UserError(f"{workdir} holds a run of '{name}': a chat needs a language model")
        self._objective, self._tokenizer = run.objective, run.objective.tokenizer
        self._params, self._mutables = state.sampling_params, state.mutables
        self._seed = seed
        chosen: Any = build.sample_options(run.config, {"num": 1, **options})
        stop = (*chosen.stop, *turn_end(self._tokenizer))
        self._options: Any = dataclasses.replace(chosen, stop=stop)
        context = run.objective.context
        self._max_prompt = context - chosen.max_new_tokens
        if not run.objective.bounded:  # the answer may exceed the window, as old tokens leave it
            self._max_prompt = max(self._max_prompt, context // 2)
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(self._system)

    def reset(self) -> None:
        """Clears the conversation."""
        self.messages = list(self._system)

    def retract(self) -> None:
        """Removes the last message of the user if it has not been answered."""
        if self.messages[-1:] and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def answer(self, text: str, show: Callable[[str], None] = lambda piece: None) -> str:
        """Returns the model's answer to `text`; adds both to `messages`.

        If the conversation is too long for the model, its oldest turns are omitted from the prompt.

        Args:
          text: the user's message.
          show: called with the pieces of the answer as they are generated.

        Raises:
          UserError: if `text` alone is too long.
        """
        self.messages.append({"role": "user", "content": text})
        prompt, first = self._prompt(0), len(self._system)
        left_out = 0  # messages
        while len(prompt) > self._max_prompt:
            left_out += 2
            if first + left_out >= len(self.messages):
                self.messages.pop()
                raise UserError(
                    f"the message has {len(prompt)} tokens, but the model takes at most"
                    f" {self._max_prompt}: shorten it, or lower --max_new_tokens"
                )
            prompt = self._prompt(left_out)
        streamer = StopStringStreamer(self._tokenizer, self._options.stop, show)
        init = self._objective.encode_tokens([prompt], self._options.max_new_tokens)
        request = make_request(
            self._objective, self._options, 1, init=init, token_callback=streamer
        )
        seed = self._seed + len(self.messages)
        samples = generate(self._objective, self._params, self._mutables, request, seed)
        streamer.close()
        answer = truncate_at_stop(self._tokenizer.decode(samples[0]), self._options.stop)
        self.messages.append({"role": ANSWER, "content": answer})
        return answer

    def _prompt(self, left_out: int) -> np.ndarray:
        kept = self.messages[len(self._system) + left_out :]
        return render([*self._system, *kept], self._tokenizer, answer=True)[0]


def talk(chat: Chat) -> None:
    """Reads messages from standard input, line by line, and writes the answers."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 (gives `input` its history and editing)

        print(HELP, file=sys.stderr)

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    while True:
        try:
            line = input("> " if terminal else "").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/reset":
            chat.reset()
        elif line:
            try:
                chat.answer(line, show)
                print()
            except KeyboardInterrupt:  # stops this answer, not the chat
                chat.retract()
                print()
            except UserError as e:
                print(f"aigc: {e}", file=sys.stderr)
