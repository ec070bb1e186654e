"""Texts while they are drawn, and conversations: what is shown, where it ends, what is kept."""

import io
import sys
import types

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from helpers import tiny
from helpers.hostile import refusal
from helpers.small_tokenizers import KINDS, TEXT, kind, trained
from hypothesis import given, settings
from hypothesis import strategies as st

import aigc_jax
from aigc_jax import interop
from aigc_jax.core.config import Sample
from aigc_jax.core.objective import Objective
from aigc_jax.experiment.restore import restore
from aigc_jax.families.lm.language_model import LMSample
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.inference.prompts import pad_prompts
from aigc_jax.inference.stop_strings import StopStringStreamer, truncate_at_stop
from aigc_jax.interop import convert
from aigc_jax.interop.transformers.read_folder import transformer_shapes
from aigc_jax.modalities.text.chat_format import render
from aigc_jax.modalities.text.hf_tokenizer import IM_END
from aigc_jax.modalities.text.tokenizers import ByteTokenizer
from aigc_jax.runs import chat as chat_lib
from aigc_jax.runs.chat import Chat, talk

BYTE = ByteTokenizer()


def watched(tokenizer, tokens, stops=(), piece=1):
    """What is shown after each look, and whether the text has ended by then."""
    pieces = []
    watch = StopStringStreamer(tokenizer, stops, pieces.append)
    ended = []
    for upto in (*range(piece, len(tokens), piece), len(tokens)):
        ended.append(bool(watch(np.array([tokens[:upto]]))[0]))
    watch.close()
    return pieces, ended


# Watching ------------------------------------------------------------------------------------


def test_nothing_of_a_stop_string_is_shown_that_spans_tokens():
    pieces, ended = watched(BYTE, BYTE.encode("ab\nUser: no"), ["\nUser:"])
    assert "".join(pieces) == "ab"
    assert ended == [False] * 7 + [True] * 4  # with the colon


def test_possible_stop_strings_are_held_back():
    pieces, ended = watched(BYTE, BYTE.encode("a<<b<|x"), ["<|end|>", "<<<"])
    assert pieces == ["a", "", "", "<<b", "", "", "<|x", ""]
    assert not any(ended)
    pieces, _ = watched(BYTE, BYTE.encode("a<|"), ["<|end|>"])
    assert pieces == ["a", "", "", "<|"]  # the last one when all is drawn


def test_characters_are_shown_whole():
    tokens = BYTE.encode("é人🙂")
    pieces, _ = watched(BYTE, tokens)
    assert pieces == ["", "é", "", "", "人", "", "", "", "🙂", ""]
    pieces, _ = watched(BYTE, tokens[:-1])
    assert "".join(pieces) == "é人�"


def test_a_stop_token_ends_a_row_and_others_go_on():
    tokenizer, shown = trained(), []
    end, words = tokenizer.stops[0], tokenizer.encode("the cat").tolist()
    rows = np.array([[*words, end, *words], [*words, *words, words[0]]])
    watch = StopStringStreamer(tokenizer, (), shown.append)
    assert watch(rows[:, : len(words)]).tolist() == [False, False]
    assert watch(rows).tolist() == [True, False]
    assert watch(np.concatenate([rows, rows], 1)).tolist() == [True, False]
    watch.close()
    assert "".join(shown) == "the cat"


@given(
    st.sampled_from(KINDS),
    TEXT,
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
    st.integers(1, 9),
)
@settings(deadline=None, max_examples=150)
def test_streamed_text_ends_before_the_first_stop_string(name, text, stops, piece):
    """However many tokens come between two looks, and whatever a token is."""
    tokenizer = kind(name)
    if name == "char":
        text = "".join(c for c in text if c in tokenizer.index)
    tokens = tokenizer.encode(text).tolist()
    pieces, ended = watched(tokenizer, tokens, stops, piece)
    whole = tokenizer.decode(tokens)
    assert "".join(pieces) == truncate_at_stop(whole, stops)
    assert not tokens or not ended[-1] or truncate_at_stop(whole, stops) != whole


def test_streamer_is_reset_for_each_batch():
    """A row that has ended says nothing of the row in its place in the next batch."""
    texts = ["one END", "two", "three", "four", "fiveEND", "six"]
    rows = np.full((6, 7), BYTE.separator)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = BYTE.encode(text)

    class Reader(Objective):
        def sample(self, params, mutables, key_N, request):
            out = rows[request.index_N].copy()
            for upto in range(1, 8):
                out[np.flatnonzero(request.token_callback(out[:, :upto])), upto:] = BYTE.separator
            return out

    watch = StopStringStreamer(BYTE, ["END"])
    for size in (2, 6):
        drawn = tiny.draw(Reader(), {}, {}, Sample(), 6, token_callback=watch, batch_size=size)
        np.testing.assert_array_equal(drawn, rows)


# Talking -------------------------------------------------------------------------------------


class Talker(Objective):
    """What a chat needs of a language model."""

    def __init__(self, tokenizer, context, bounded):
        self.tokenizer, self.context, self.bounded = tokenizer, context, bounded

    def encode_prompts(self, prompts, options):
        raise AssertionError("a chat has its own prompts")

    def encode_tokens(self, prompts, max_new_tokens):
        return pad_prompts(prompts)

    def texts(self, samples, options):
        return [self.tokenizer.decode(row) for row in samples]

    def engine(self, params, slots, length, max_new_tokens, stops=None):
        raise AssertionError("a chat samples")

    def decoding_bytes(self, params, batch, length):
        raise AssertionError("a chat measures nothing")


class Script:
    """Stands in for a model: answers in turn, and keeps the prompts."""

    def __init__(self, monkeypatch, answers, tokenizer, context=1000, bounded=False, **sample):
        self.prompts, self.seeds, self.answers = [], [], list(answers)
        config = types.SimpleNamespace(
            sample=LMSample(**{"max_new_tokens": 100} | sample), raw={"objective": {"name": "lm"}}
        )
        run = types.SimpleNamespace(
            config=config,
            objective=Talker(tokenizer, context, bounded),
            spec=types.SimpleNamespace(tokenizer=tokenizer),
        )
        state = types.SimpleNamespace(sampling_params={}, mutables={})
        monkeypatch.setattr(chat_lib, "restore", lambda workdir, **_: (run, state, 0))
        monkeypatch.setattr(chat_lib, "generate", self)
        self._tokenizer = tokenizer

    def __call__(self, objective, params, mutables, request, seed):
        assert len(request) == request.options.num == 1
        (prompt,), (length,) = request.init["tokens"], request.init["length"]
        self.prompts.append(prompt[:length])
        self.seeds.append(seed)
        watch = request.token_callback
        answer = np.array([self.answers.pop(0)])
        for upto in range(1, answer.shape[1] + 1):
            if watch(answer[:, :upto])[0]:
                break
        return answer[:, :upto]


def message(role, content):
    return {"role": role, "content": content}


def test_a_conversation_is_remembered_and_forgotten(monkeypatch):
    tokenizer = trained()
    end = tokenizer.special(IM_END)[0]
    answers = [[*tokenizer.encode(text), end, 50, 60] for text in ("the cat", "the mat", "sat")]
    script = Script(monkeypatch, answers, tokenizer)
    chat, shown = Chat("w", system="be kind", seed=3), []
    assert chat.answer("who?", shown.append) == "the cat" == "".join(shown)
    assert chat.answer("where?") == "the mat"
    said = [
        message("system", "be kind"),
        message("user", "who?"),
        message("assistant", "the cat"),
        message("user", "where?"),
        message("assistant", "the mat"),
    ]
    assert chat.messages == said
    for prompt, count in zip(script.prompts, (2, 4), strict=True):
        np.testing.assert_array_equal(prompt, render(said[:count], tokenizer, answer=True)[0])
    chat.reset()
    assert chat.messages == said[:1]
    chat.answer("who?")
    np.testing.assert_array_equal(script.prompts[2], script.prompts[0])
    # Another answer to the same words later on, the same after a reset.
    assert script.seeds == [5, 7, 5]


def test_without_special_tokens_the_mark_of_a_turn_s_end_is_text(monkeypatch):
    answers = [BYTE.encode(f"one{IM_END}\n<|im_start|>user"), BYTE.encode("two\n\nthree")]
    Script(monkeypatch, answers, BYTE, stop=("\n\n",))
    chat, shown = Chat("w"), []
    assert chat.answer("?", shown.append) == "one" == "".join(shown)
    assert chat.answer("?") == "two"  # the recipe's own stop strings count too
    assert [m["content"] for m in chat.messages] == ["?", "one", "?", "two"]


def test_the_oldest_turns_of_a_long_conversation_are_left_out(monkeypatch):
    script = Script(monkeypatch, [BYTE.encode("yes")] * 6, BYTE, context=300, bounded=True)
    chat = Chat("w", system="s", max_new_tokens=60)
    for i in range(5):
        chat.answer(f"question {i}")
    texts = [BYTE.text(prompt) for prompt in script.prompts]
    assert all(len(prompt) <= 300 - 60 for prompt in script.prompts)
    for i, text in enumerate(texts):  # whole turns, the person's first; room for three questions
        assert text.startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n")
        assert [n for n in range(5) if f"question {n}" in text] == list(range(max(i - 2, 0), i + 1))
    assert len(chat.messages) == 11  # though nothing is forgotten
    said = list(chat.messages)
    refused = refusal(chat.answer, "x" * 300)
    assert "at most 240" in refused and "--max_new_tokens" in refused
    assert chat.messages == said
    assert chat.answer("short") == "yes"


def test_models_that_forget_by_themselves_keep_half_their_context_for_the_conversation(monkeypatch):
    script = Script(monkeypatch, [BYTE.encode("yes")], BYTE, context=200)
    Chat("w", max_new_tokens=500).answer("x" * 40)
    assert len(script.prompts[0]) <= 100


def test_a_chat_needs_a_language_model_and_known_options(monkeypatch):
    Script(monkeypatch, [], BYTE)
    assert "no option 'heat'" in refusal(Chat, "w", heat=2.0)
    assert "temperature" in refusal(Chat, "w", temperature=-1.0)
    image = types.SimpleNamespace(sample=None, raw={"objective": {"name": "gan"}})
    run = types.SimpleNamespace(config=image, objective=object())
    monkeypatch.setattr(chat_lib, "restore", lambda workdir, **_: (run, None, 0))
    assert "'gan'" in refusal(Chat, "w")


def test_talking_in_a_terminal(monkeypatch, capsys):
    answers = [BYTE.encode(text) for text in ("one", "two", "three")]
    script = Script(monkeypatch, answers, BYTE, context=200)
    lines = ["hello", "", "x" * 300, "/reset", "again", "/exit", "never"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    talk(Chat("w"))
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n" and "aigc: the message has" in err and err.count("\n") == 1
    assert BYTE.text(script.prompts[1]).count("<|im_start|>") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO("bye"))  # the end of the input ends it as well
    talk(Chat("w"))
    assert capsys.readouterr().out == "three\n"


def test_ctrl_c_ends_an_answer_and_not_the_conversation(monkeypatch, capsys):
    script = Script(monkeypatch, [BYTE.encode("one"), BYTE.encode("two")], BYTE, context=200)
    chat, answer = Chat("w"), Chat.answer
    said = []

    def interrupted(self, line, show):
        said.append(line)
        if len(said) == 1:
            self.messages.append({"role": "user", "content": line})
            raise KeyboardInterrupt
        return answer(self, line, show)

    monkeypatch.setattr(Chat, "answer", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nagain"))
    talk(chat)
    assert capsys.readouterr().out == "\none\n"
    assert [m["content"] for m in chat.messages] == ["again", "one"] and len(script.prompts) == 1


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model of random weights that knows how conversations are marked."""
    folder, tokenizer = tmp_path_factory.mktemp("chat"), trained()
    config = TransformerConfig(
        1, 8, 2, gated=True, activation="silu", context=64, vocab_size=tokenizer.size
    )
    rng = np.random.default_rng(0)
    params = {
        k: rng.normal(0, 1, s).astype(np.float32) for k, s in transformer_shapes(config).items()
    }
    interop.write_hf_folder(
        str(folder / "hf"),
        config,
        unflatten_dict(params, sep="/"),
        tokenizer=tokenizer.to_library(),
        specials={"bos": tokenizer.separator, "eos": tokenizer.separator},
    )
    convert.import_model(f"hf:{folder}/hf", str(folder / "w"))
    return str(folder / "w")


def test_what_a_model_says_is_what_is_shown(workdir):
    """From the weights to the words: sampling with and without somebody watching."""
    options = dict(max_new_tokens=20, seed=1, prompt="the cat")
    pieces = []
    (text,) = aigc_jax.sample(workdir, show=pieces.append, **options)
    assert text == "the cat" + "".join(pieces) and len(pieces) > 1 and len(text) > 12
    stop = text[11:13]
    (short,) = aigc_jax.sample(workdir, stop=(stop,), **options)
    assert short == "the cat" + truncate_at_stop(text[7:], [stop]) and len(short) < len(text)
    chat, pieces = Chat(workdir, max_new_tokens=20, temperature=0.7), []
    said = chat.answer("the mat", pieces.append)
    assert said == "".join(pieces) and chat.messages[-1] == message("assistant", said)
    run, _, _ = restore(workdir)
    assert run.spec.tokenizer.to_json() == trained().to_json()
