"""Held-out figures: every example once, whatever the batches and devices; answers and entities."""

import types

import numpy as np
import pytest
from helpers.hostile import refusal
from helpers.own_texts import chat
from helpers.table_model import BYTE, PARAMS, Table, masked

from aigc_jax.core.config import Data
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Objective
from aigc_jax.data.fixed_batches import eval_batches
from aigc_jax.distributed.mesh import make_mesh
from aigc_jax.evaluation.evaluator import Evaluator
from aigc_jax.evaluation.heldout import HeldOut
from aigc_jax.evaluation.samples import SampleDrawer
from aigc_jax.experiment.eval_options import eval_section
from aigc_jax.families.lm.language_model import LanguageModel, LMConfig, LMSample
from aigc_jax.families.lm.masked_lm import MaskedLMSample
from aigc_jax.families.lm.text_task import TaskConfig, TokenTagging
from aigc_jax.modalities.metric import EvaluatedModel, EvaluationContext
from aigc_jax.modalities.text.eval_options import TextEval
from aigc_jax.modalities.text.metrics.classification_report import entity_report, report
from aigc_jax.modalities.text.metrics.text_generation import TextGeneration
from aigc_jax.modalities.text.spec import TextSpec

RNG = np.random.default_rng(3)
COUNT, T = 21, 7
MASKED = [
    {
        "tokens": RNG.integers(0, 257, T + 1).astype(np.int32),
        "weight": (RNG.uniform(size=T) < 0.7).astype(np.float32),
    }
    for _ in range(COUNT)
]
TAGGED = [
    {
        "tokens": row["tokens"],
        "segments": np.ones(T + 1, np.int32),
        "tags": RNG.integers(-1, 3, T).astype(np.int32),
        "weight": np.float32(1),
    }
    for row in MASKED
]


@pytest.mark.parametrize("name", ["masked", "tags"])
def test_batches_and_devices_do_not_change_what_is_found(name):
    """With noise that belongs to an example, and with predictions, in the order of the examples."""
    spec = TextSpec(BYTE, T, "tags", ("no", "yes", "maybe"))
    objective, rows = {
        "masked": (masked(mask_rate=0.5), MASKED),
        "tags": (TokenTagging(TaskConfig(), Table(), spec), TAGGED),
    }[name]
    found = []
    for size, mesh in ((3, "data=1"), (8, "data=1"), (8, "data=4")):
        held_out = HeldOut(objective, make_mesh(mesh))
        metrics, predictions = held_out(PARAMS, {}, eval_batches(rows, size))
        found.append((metrics, predictions))
        assert metrics["loss_low"] < metrics["loss_high"]
        for key in ("loss", "accuracy"):
            assert metrics[f"{key}_low"] <= metrics[key] <= metrics[f"{key}_high"]
    for metrics, predictions in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-5)
        for key, array in predictions.items():
            np.testing.assert_array_equal(array[:COUNT], found[0][1][key][:COUNT])
            assert (array[COUNT:] == -1).all()  # only fills up
    if name == "tags":
        true = np.stack([row["tags"] for row in TAGGED])
        np.testing.assert_array_equal(found[0][1]["true"], true)
        logits = PARAMS["model"]["task_logits"][np.stack([r["tokens"][:-1] for r in TAGGED])]
        right = ((logits.argmax(-1) == true) & (true >= 0)).sum()
        assert found[0][0]["accuracy"] == pytest.approx(right / (true >= 0).sum(), rel=1e-6)


def test_every_example_counts_once_and_by_its_weight():
    class Counting(Objective):
        turns = ("model",)

        def evaluate(self, params, mutables, batch, key_B):
            real = (batch["weight"] > 0).any(-1).astype(np.float32)
            return {
                "loss": Mean.rows(batch["tokens"][:, 1:], batch["weight"]),
                "examples": Mean(real.sum(), np.float32(1)),
            }

    held_out = HeldOut(Counting(), make_mesh("data=1"))
    weight = np.stack([row["weight"] for row in MASKED])
    tokens = np.stack([row["tokens"] for row in MASKED])[:, 1:]
    totals = []
    for size in (3, 8):
        metrics, predictions = held_out({}, {}, eval_batches(MASKED, size))
        assert predictions == {} and "examples_low" not in metrics
        totals.append(metrics["examples"] * -(-COUNT // size))
        assert metrics["loss"] == pytest.approx((tokens * weight).sum() / weight.sum(), rel=1e-6)
    assert totals == [COUNT, COUNT]


def test_tags_that_mark_entities_are_judged_as_entities():
    """And other tags word by word; what fills up the last batch has no say."""
    names = {"entities": ("O", "B-x", "I-x"), "words": ("no", "yes", "maybe")}
    logits = PARAMS["model"]["task_logits"][np.stack([row["tokens"][:-1] for row in TAGGED])]
    state = types.SimpleNamespace(sampling_params=PARAMS, mutables={})
    for kind, classes in names.items():
        spec = TextSpec(BYTE, T, "tags", classes)
        config = types.SimpleNamespace(
            eval=eval_section()(batch_size=8),
            data=Data(),
            sample=None,
            raw={"objective": {"name": "tagging"}},
        )
        run = types.SimpleNamespace(
            config=config,
            spec=spec,
            objective=TokenTagging(TaskConfig(), Table(), spec),
            mesh=make_mesh("data=1"),
        )
        ticks = []
        judge = Evaluator(run, types.SimpleNamespace(validation=TAGGED), lambda: ticks.append(1))
        found = judge(state)
        assert len(ticks) == 3
        true, said = (
            [[classes[tag] for tag in tags[row["tags"] >= 0]] for tags, row in rows]
            for rows in (
                [(row["tags"], row) for row in TAGGED],
                zip(logits.argmax(-1), TAGGED, strict=True),
            )
        )
        if kind == "entities":
            expected = entity_report(true, said)
        else:
            number = {name: i for i, name in enumerate(classes)}
            flat = ([number[tag] for row in rows for tag in row] for rows in (true, said))
            expected = report(*flat, classes)
        assert found["report"] == expected.to_json() and found["report"]["count"] > 50
        assert found["f1_micro"] == expected.metrics()["f1_micro"]
        assert found["accuracy"] == pytest.approx(expected.accuracy)


def test_texts_cannot_be_asked_of_a_family_that_writes_none():
    config = types.SimpleNamespace(
        data=Data(),
        eval=eval_section()(text=TextEval(num_generations=3)),
        sample=MaskedLMSample(),
        raw={"objective": {"name": "masked_lm"}},
    )
    run = types.SimpleNamespace(
        config=config, objective=masked(), spec=TextSpec(BYTE, T), mesh=make_mesh("data=1")
    )
    message = refusal(Evaluator(run, None).check)
    assert "eval.text.num_generations" in message and "'masked_lm'" in message


# Answers -------------------------------------------------------------------------------------


class Parrot(LanguageModel):
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, answers, tokenizer, **model):
        super().__init__(LMConfig(), Table(**model), tokenizer)
        self.answers, self.asked = answers, []

    def sample(self, params, mutables, key_N, request):
        limit, init = request.options.max_new_tokens, request.init
        prompts = zip(init["tokens"], init["length"], strict=True)
        self.asked += [token_P[:length] for token_P, length in prompts]
        out = np.full((len(request), limit), self.tokenizer.separator)
        for row, n in zip(out, request.index_N, strict=True):
            said = self.answers[n][:limit]
            row[: len(said)] = said
        return out


def scores(parrot, dataset, **sample):
    pytest.importorskip("sacrebleu", reason="needs the extra eval")
    section = eval_section()(text=TextEval(num_generations=3))
    config = types.SimpleNamespace(sample=LMSample(**sample), eval=section)
    run = types.SimpleNamespace(config=config, objective=parrot)
    state = types.SimpleNamespace(sampling_params={}, mutables={})
    draw = SampleDrawer(run, dataset).of(state)
    context = EvaluationContext(
        objective=parrot,
        objective_name="lm",
        spec=TextSpec(parrot.tokenizer, T),
        dataset=dataset,
        source="",
        config=section,
        options=section.text,
        sample=config.sample,
    )
    metric = TextGeneration()
    assert metric.supports(context)
    metric.check(context)
    return metric(context, EvaluatedModel({}, {}, {}, {}, draw, draw.shared))


def test_the_last_answer_of_a_conversation_is_asked_for():
    said = [f"the answer to question {i} is {i}" for i in range(4)]
    dialogues = [chat(f"what is {i}?", text)["messages"] for i, text in enumerate(said)]
    dialogues[3] = dialogues[0] + dialogues[3] + [{"role": "user", "content": "thanks"}]
    parrot = Parrot([BYTE.encode(f"{said[i]}<|im_end|>\nno") for i in (0, 1, 3)], BYTE)
    dataset = types.SimpleNamespace(dialogues=dialogues)
    found = scores(parrot, dataset, max_new_tokens=60)
    assert found["bleu"] == found["chrf"] == pytest.approx(100)
    asked = [BYTE.text(prompt) for prompt in parrot.asked]
    assert len(asked) == 3  # of four, evenly
    assert asked[0].endswith("what is 0?<|im_end|>\n<|im_start|>assistant\n")
    assert said[3] not in asked[2] and "thanks" not in asked[2]


@pytest.mark.parametrize("bounded", [False, True])
def test_the_second_half_of_a_window_is_asked_for(bounded):
    """Also where prompt and answer have to share the positions that a model has learned."""
    length = Table.context + 1
    text = "".join(f"{i} and then " for i in range(20))[:length]
    windows = [{"tokens": BYTE.encode(text)}]
    parrot = Parrot([BYTE.encode(text[length // 2 :])], BYTE, bounded=bounded)
    dataset = types.SimpleNamespace(dialogues=[], validation=windows)
    found = scores(parrot, dataset)
    assert found["rouge1"] > 80 and 0 < found["distinct_1"] <= 1
    assert BYTE.text(parrot.asked[0]) == text[: length // 2]
