"""The comparison with PyTorch takes turns fairly and writes its table; needs no PyTorch."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from aigc_jax.core.files import most_memory
from aigc_jax.tools.bench.marked_block import provenance, replace_between
from aigc_jax.tools.bench.timing import interleaved
from benchmarks.peers import ours, work
from benchmarks.peers.others import Others
from benchmarks.peers.processes import starts
from benchmarks.peers.rows import ComparisonRow, disturbances, table, three
from benchmarks.peers.timing import Slot, probe, ratio


class Clocked:
    """Work that moves a clock by the next of some costs, the last one again and again."""

    def __init__(self, *costs):
        self.now, self.log = 0.0, []
        self.costs = itertools.chain(costs, itertools.repeat(costs[-1]))

    def __call__(self, times):
        self.log.append(times)
        self.now += sum(next(self.costs) for _ in range(times))

    def slot(self, seconds):
        return Slot(self, seconds, lambda: self.now)


def test_slots_are_of_the_same_length_and_give_the_time_for_once():
    for cost, times in ((0.5, 4), (0.125, 16)):
        work = Clocked(cost)
        slot = work.slot(2.0)
        assert [slot(), slot(), slot()] == [cost] * 3
        assert work.log == [1, 1, times, 1, times]  # each but the first warms up


def test_warm_up_is_not_timed():
    slot = Clocked(1.0, 100.0, 0.5).slot(4.0)
    assert [slot(), slot()] == [1.0, 0.5]


def test_long_work_is_done_once_and_not_warmed_up():
    for seconds in (0.0, 1.0):
        work = Clocked(9.0)
        slot = work.slot(seconds)
        assert [slot(), slot()] == [9.0, 9.0] and work.log == [1, 1]


def test_sides_take_turns():
    sides = {"ours": Clocked(0.5).slot(2.0), "theirs": Clocked(1.0).slot(2.0)}
    found = interleaved(sides, 3, lambda: 1.0)
    row = ComparisonRow.of("work", "peer", found, 1.0)
    assert row.ours == (0.5,) * 3 and row.theirs == (1.0,) * 3 and row.disturbed == 0
    assert 0 < probe() < 60


def test_other_strengths_are_between_the_extremes():
    others = Others()
    sum(i * i for i in range(100_000))
    assert 0 <= others.share() <= 1


def test_time_to_first_step_and_peak_memory_are_reported():
    code = "import os; print(os.environ['XDG_CACHE_HOME'], flush=True); print(123)"
    with starts("lm") as processes:
        assert processes["ours"].cache and not processes["cold"].cache
        for process in processes.values():
            process.command = [sys.executable, "-c", code]
            assert 0 < process() < 60 and process.bytes == [123]
            process.command[-1] = "raise SystemExit(1)"
            with pytest.raises(RuntimeError, match="failed"):
                process()


def test_a_process_tells_of_its_own_memory_not_of_its_parents():
    much = np.ones(1 << 27, np.uint8)  # 128 MiB that are really there
    code = "from aigc_jax.core.files import most_memory; print(most_memory())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True).stdout)
    assert 1e6 < child < most_memory() - much.nbytes / 2


def test_ratio_is_that_of_medians_and_lies_in_its_interval():
    middle, low, high = ratio([1.0, 2.0, 30.0], [4.0, 4.0, 4.0])
    assert middle == 0.5 and low == 0.25 and high == 7.5
    rng = np.random.default_rng(0)
    noise = rng.uniform(1, 3, 20)  # of the machine: both sides have it
    middle, low, high = ratio(0.5 * noise, noise)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5) and middle == pytest.approx(0.5)


ROWS = [
    ComparisonRow("a step", "theirs", [0.02, 0.03, 0.02], [0.04] * 3, 1.0),
    ComparisonRow("tokens", "theirs", [2.0] * 2, [1.0] * 2, 0.5, per=512, unit="tokens"),
    ComparisonRow("memory", "theirs", [int(1.2e9)], [int(1e9)], 1.0, unit="bytes", disturbed=1),
]


def test_table_has_medians_with_their_units():
    lines = table(ROWS).splitlines()
    assert lines[1] == "|---|---|---|---|---|"
    assert lines[2] == "| a step | theirs | 40.0 ms | 20.0 ms | **0.50** (0.50–0.75) |"
    assert "| 512 tokens/s | 256 tokens/s | **2.00** (2.00–2.00) |" in lines[3]
    assert "| 1.00 GB | 1.20 GB | **1.20**" in lines[4]
    assert "target 1.0: reached; 0 of 6 slots" in ROWS[0].verdict()
    assert "NOT reached; 1 of 2" in ROWS[2].verdict()
    assert disturbances(ROWS, 0.0).startswith("1 of 12 slots")
    assert disturbances(ROWS[:2], 0.01) == ""
    assert "other processes had 30% of its cores" in disturbances(ROWS, 0.3)
    assert [three(x) for x in (0.123456, 12.345, 3375.4)] == ["0.123", "12.3", "3375"]


def test_a_table_is_replaced_between_its_marks(tmp_path):
    page = str(tmp_path / "page.md")
    replace_between(page, "<!-- a -->", "<!-- b -->", "one")
    with open(page, "r+") as f:
        content = "# Title\n\n" + f.read() + "\nafter\n"
        f.seek(0)
        f.write(content)
    replace_between(page, "<!-- a -->", "<!-- b -->", "two")
    with open(page) as f:
        assert f.read() == "# Title\n\n<!-- a -->\ntwo\n<!-- b -->\n\nafter\n"
    line = provenance(("numpy",), "python x.py")
    assert line.startswith("`python x.py`, 20") and "CPU cores" in line and "numpy 2" in line


def test_our_side_is_what_the_library_builds():
    """All recipes are valid; shapes are compared with theirs when they are measured."""
    for run in (ours.lm(work.MEDIUM, max_new_tokens=4), ours.unet(), ours.gan(), ours.vae()):
        assert run.config.ema.halflife == 0 and run.mesh.size == 1
    assert ours.count(run.state_shapes().params) == 784 * 800 + 400 * 60 + 784 + 800 + 40
