"""What a config costs: FLOPs by hand, the report's figures, times that take turns."""

import itertools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.paths import ROOT

from aigc_jax.core.errors import UserError
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Objective
from aigc_jax.experiment import build
from aigc_jax.nn.transformer_config import TransformerConfig
from aigc_jax.tools.bench import decoding, flops, hardware, measure, table, trace
from aigc_jax.tools.bench.synthetic_data import synthetic
from aigc_jax.tools.bench.timing import Times, interleaved, ratio
from aigc_jax.tools.chips import data_sheet, data_sheet_per_device
from benchmarks import gpu_table


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# FLOPs ---------------------------------------------------------------------------------------


def test_a_matrix_product():
    found = flops.count(jnp.dot, zeros(3, 5), zeros(5, 7))
    assert found == flops.FlopCount(dense=2 * 3 * 5 * 7)


def test_a_product_for_each_example_is_one_of_pairs():
    found = flops.count(lambda q, k: jnp.einsum("bthd,bshd->bhts", q, k), zeros(2, 3, 4, 5),
                        zeros(2, 6, 4, 5))  # fmt: skip
    assert found == flops.FlopCount(attention=2 * 2 * 4 * 3 * 6 * 5)


def test_a_loop_counts_as_often_as_it_turns():
    def function(x, w):
        body = lambda x, _: (x @ w, None)  # noqa: E731
        inner = lambda x, _: (jax.lax.scan(body, x, None, length=3)[0], None)  # noqa: E731
        x = jax.checkpoint(lambda x: jax.lax.scan(inner, x, None, length=5)[0])(x)
        return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x, x)

    once = 2 * 4 * 4 * 4
    assert flops.count(function, zeros(4, 4), zeros(4, 4)).dense == 17 * once
    gradient = jax.grad(lambda x, w: function(x, w).sum(), argnums=(0, 1))
    # Backwards each product is two; the fifteen under checkpoint are done again.
    assert flops.count(gradient, zeros(4, 4), zeros(4, 4)).dense == (3 * 17 + 15) * once


def test_unbounded_loop_counts_once_and_is_reported():
    def function(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    assert flops.count(function, zeros(4, 4)) == flops.FlopCount(dense=128, unbounded_loops=1)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride, dilation, pad", [(1, 1, (1, 1)), (2, 1, (0, 1)), (1, 2, (2, 0))])
def test_a_convolution_counts_the_taps_that_meet_an_input(groups, stride, dilation, pad):
    """Beside a count by hand, tap by tap; dilation is that of the inputs, as in transposed ones."""
    size, taps, cin, cout = 5, 3, 4, 6

    def function(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, 1), [pad, (1, 0)], lhs_dilation=(dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    def line(stride, dilation, pad):
        length = (size - 1) * dilation + 1
        outs = range((length + sum(pad) - taps) // stride + 1)
        at = [o * stride + k - pad[0] for o, k in itertools.product(outs, range(taps))]
        return sum(0 <= i < length and i % dilation == 0 for i in at)

    hits = line(stride, dilation, pad) * line(1, 1, (1, 0))
    shapes = zeros(2, size, size, cin), zeros(taps, taps, cin // groups, cout)
    assert flops.count(function, *shapes).dense == 2 * 2 * cout * cin // groups * hits


def lm(**model):
    return build.parse_config(tiny.recipe("lm", model=model))


@pytest.mark.parametrize("changes", [{}, dict(remat="full"), dict(sliding_window=3)])
def test_transformer_requirements(changes):
    """The count of the PaLM paper's appendix B, but each pair of tokens that sees each other."""
    config = lm(**changes)
    c, batch, length = config.model, config.data.batch_size, tiny.SEQ_LEN
    layer = 4 * c.width**2 + 2 * c.width * c.hidden
    weights = c.layers * layer + 257 * c.width
    seen = sum(min(t + 1, changes.get("sliding_window", length)) for t in range(length))
    pairs = 2 * c.layers * c.width * seen
    expected = 6 * batch * (length * weights + pairs)
    assert flops.model_flops(config, tiny.TEXT) == expected


class Players(Objective):
    """A game of two players, of whom one moves twice; each has one matrix."""

    turns = ("a", "a", "b")

    def init(self, rng, batch):
        return {"a": jnp.zeros((64, 3)), "b": jnp.zeros((64, 5))}, {}

    def loss(self, player, params, mutables, batch, key_B, step):
        x = batch["image"].reshape(-1, 64) / 255
        return Mean.of(((x @ params[player]) ** 2).sum(-1), batch["weight"]), ({}, mutables)


def test_every_turn_of_a_game_counts(monkeypatch):
    """Forwards and backwards to the weights, but not to the data."""
    monkeypatch.setattr(build, "make_objective", lambda config, spec: Players())
    config = build.parse_config(tiny.recipe("gan"))
    once = 2 * 8 * 64
    assert flops.model_flops(config, tiny.IMAGES) == 2 * once * (3 + 3 + 5)


@pytest.mark.parametrize("causal, window", [(True, 0), (True, 3), (False, 0), (False, 2)])
def test_the_share_of_pairs_that_see_each_other(causal, window):
    config = TransformerConfig(
        causal=causal, sliding_window=window, layers=3, full_attention_every=3
    )
    ahead = np.arange(7)[:, None] - np.arange(7)
    shares = []
    for reach in config.windows():
        seen = np.abs(ahead) < (reach or 7)
        shares.append((seen & (ahead >= 0) if causal else seen).mean())
    assert config.attended_share(7) == pytest.approx(np.mean(shares))


# Times ---------------------------------------------------------------------------------------


def test_sides_take_turns_and_a_disturbed_turn_is_repeated():
    said, speeds = [], itertools.chain([1.0] * 6, [1.0, 2.0], itertools.repeat(1.0))

    def side(name, seconds):
        return lambda: said.append(name) or seconds

    sides = {"a": side("a", 4.0), "b": side("b", 6.0)}
    found = interleaved(sides, 3, lambda: next(speeds))
    # Compiled once each; then a b, b a, a b, of which one turn is taken twice.
    assert said[:2] == ["a", "b"] and len(said) == 2 + 6 + 1
    assert ratio(*found["a"]).median == 4 and ratio(*found["b"]).median == 6
    assert found["a"][0].disturbed == found["b"][0].disturbed == 0


def test_busy_machine_is_reported():
    speeds = itertools.cycle([1.0, 2.0])
    found = interleaved({"a": lambda: 3.0}, 2, lambda: next(speeds), tries=2)
    own, probe = found["a"]
    assert own.disturbed == 2 and len(own.seconds) == 2 and probe.median == 1.5


def test_times_know_their_middle_and_spread():
    times = Times((1.0, 2.0, 3.0, 4.0, 100.0))
    assert times.median == 3 and times.spread == pytest.approx(1 / 3)
    assert Times((2.0,)).spread == 0


# Reports -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a language model, with a trace; the machine's own ceilings are made up."""
    folder = tmp_path_factory.mktemp("trace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "matmul_ceiling", lambda dtype: 1e11)
        patch.setattr(hardware, "bandwidth_ceiling", lambda: 1e10)
        patch.setattr(measure, "can_decode", lambda run: False)
        patch.setattr(measure, "records_per_second", lambda config, dataset: 1e5)
        config = lm(layers=1)
        return measure.measure(config, seconds=0.01, shape="text", folder=str(folder))


def test_a_report_holds_every_figure(report):
    assert json.loads(json.dumps(report)) == report
    rate, step, work = report["rate"], report["step"], report["flops"]
    assert rate["unit"] == "tokens"
    assert rate["per_second"] == pytest.approx(8 * tiny.SEQ_LEN / step["median"])
    assert step["fastest"] <= step["median"] and step["count"] >= measure.MIN_STEPS
    assert report["compile_seconds"] > 0 and report["memory"]["peak"] > 1e6
    assert report["memory"]["temporary"] > 0
    assert 0 <= report["data"]["wait"] <= 1 and report["data"]["records_per_second"] > 0
    assert work["model"] == flops.model_flops(lm(layers=1), tiny.TEXT)
    assert work["mfu"] == pytest.approx(work["model"] / step["median"] / 1e11)
    assert work["computed"] >= work["model"] and work["xla"] > 0
    assert report["implementations"] == {"attention": ["blockwise"]}


def test_a_trace_names_the_dearest_operations(report):
    found = report["profile"]
    shares = [o["share"] for o in found["operations"]]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and shares[0] > 0
    assert 0 < found["device_share"] <= 1
    assert any(o["source"] for o in found["operations"])


def test_table_has_every_figure(report):
    text = table.table(report)
    for word in (
        "tokens/s",
        "MFU",
        "blockwise implementation",
        "data stall",
        "synthetic text",
        "peak memory",
    ):
        assert word in text
    assert report["profile"]["operations"][0]["name"] in text
    found = dict(batch=2, tokens_per_second=1e3, spread=0.1, bytes_per_second=5e8, share=0.5)
    text = table.table(report | {"decoding": [found | dict(ceiling=1e9)]})
    assert "decoding, batch 2" in text and "50% of 1 GB/s" in text


def test_the_table_of_a_gpu_says_what_could_not_be_measured(report, tmp_path, capsys):
    path, absent = tmp_path / "small_lm.json", tmp_path / "unet.json"
    path.write_text(json.dumps(report))
    assert gpu_table.main([str(path), str(absent)]) == 0
    out = capsys.readouterr().out
    assert "small_lm" in out and "blockwise" in out and "not measured: unet" in out
    assert gpu_table.main([str(absent)]) == 1


@pytest.mark.slow
def test_the_script_for_a_gpu_measures_all_of_it(tmp_path):
    """Toy sizes on a CPU; one that fails takes its old figures away and is told."""
    bash = ["bash", os.path.join(ROOT, "benchmarks", "gpu.sh")]
    environment = dict(os.environ, SIZES="tiny", SECONDS_EACH="1", OUT=str(tmp_path),
                       PYTHON=sys.executable, JAX_PLATFORMS="cpu")  # fmt: skip
    done = subprocess.run(bash, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("gpt2_124m", "dit_b_4", "edm_unet", "decoding, batch 1", "mean nothing"):
        assert word in done.stdout
    failing = environment | dict(LIMIT="0.1")
    done = subprocess.run(bash, env=failing, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "nothing was measured" in done.stderr


@pytest.mark.slow
def test_decoding_reports_time_and_bandwidth(monkeypatch):
    monkeypatch.setattr(decoding, "NEW_TOKENS", 4)
    run = tiny.make("lm")
    assert decoding.can_decode(run) and not decoding.can_decode(tiny.make("vae"))
    found = decoding.decoding(run, tiny.state(run), 2, times=2)
    assert found["tokens_per_second"] == pytest.approx(2 / found["seconds_per_step"])
    assert found["bytes_per_second"] * found["seconds_per_step"] == pytest.approx(
        found["bytes_per_step"]
    )


def test_a_step_of_decoding_reads_the_weights_and_what_the_cache_holds():
    run = tiny.make("lm", model=dict(tie_embeddings=True))
    state = run.state_shapes()
    every = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    cache = 2 * 2 * 3 * 6 * 16 * 4  # k and v, layers, texts, tokens, width, bytes
    assert run.objective.decoding_bytes(state.params, 3, 6) == every * 4 + cache / 2
    run = tiny.make("lm", model=dict(tie_embeddings=False), train=dict(compute_dtype="bfloat16"))
    state = run.state_shapes()
    every = sum(math.prod(x.shape) for x in jax.tree.leaves(state.params))
    expected = (every - 257 * 16) * 2 + cache / 4  # a table that is only looked up
    assert run.objective.decoding_bytes(state.params, 3, 6) == expected


def test_own_times_are_without_what_is_inside():
    line = [trace.Event(*e) for e in (("loop", 0, 10), ("a", 1, 4), ("b", 5, 9), ("a", 12, 13))]
    assert sorted(trace.own_times(line)) == [("a", 1), ("a", 3), ("b", 4), ("loop", 3)]
    assert trace.busy_time(line) == 11
    found = trace.summarize([[line, line[:1]]], {"a": "jit(step)/transpose(jvp(Net))/dense/dot"})
    assert [(o.name, o.calls) for o in found.operations] == [("loop", 2), ("a", 2), ("b", 1)]
    assert found.operations[1].source == "Net/dense/dot"
    assert found.busy == pytest.approx(11e-9)


# Random data ---------------------------------------------------------------------------------


def test_random_images_of_a_shape():
    config = build.parse_config(tiny.recipe("diffusion"))
    dataset = synthetic("4x6x3:5", config)
    assert dataset.spec.shape == (4, 6, 3) and dataset.spec.num_classes == 5
    batch = dataset.train.batch(np.arange(3))
    example = dataset.spec.example_batch(3)
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in example.items()
    }
    latents = synthetic("latents:4x4x2", config)
    assert latents.spec.continuous and latents.spec.num_classes == 0
    assert latents.train.batch(np.arange(2))["image"].dtype == np.float32


@pytest.mark.parametrize("shape", ["", "32", "32x32", "32x32x3:", "audio", "text:5", "ax4x4"])
def test_invalid_shape_is_rejected(shape):
    with pytest.raises(UserError, match="--synthetic"):
        synthetic(shape, build.parse_config(tiny.recipe("diffusion")))


SHEETS = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


@pytest.mark.parametrize("kind, flop", SHEETS.items())
def test_a_device_has_the_sheet_of_its_name(kind, flop):
    assert data_sheet(kind).flops == flop
    assert data_sheet("cpu") is None
    chip = SimpleNamespace(device_kind=kind, platform="tpu", coords=(0, 0, 0))
    assert data_sheet_per_device([chip, chip]).flops == flop / 2
    assert (
        data_sheet_per_device(
            [SimpleNamespace(device_kind=kind, platform="gpu", process_index=0, id=0)]
        ).flops
        == flop
    )
    assert data_sheet(f"{kind} MIG 3g.40gb") is None
