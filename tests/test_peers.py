"""The comparison with PyTorch takes turns fairly and writes its table; needs no PyTorch."""

import itertools

import numpy as np
import pytest

from aigc_jax.report.marked import provenance, replace_between
from benchmarks.peers import ours, work
from benchmarks.peers.rows import Row, table, three
from benchmarks.peers.timing import TRIES, Others, alternate, is_disturbed, ratio


class Machine:
    """A clock that the sides move, and other processes that come and go."""

    def __init__(self, foreign=()):
        self.now, self.log, self.foreign = 0.0, [], itertools.chain(foreign, itertools.repeat(0.0))

    def side(self, name, seconds):
        """Takes the next of `seconds` for each piece of work, the last one again and again."""
        costs = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def work(times):
            self.log.append((name, times))
            self.now += sum(next(costs) for _ in range(times))

        return work

    def alternate(self, *sides, **options):
        foreign = lambda: next(self.foreign)  # noqa: E731
        return alternate(sides, **options, clock=lambda: self.now, foreign=foreign)


def test_sides_take_turns_in_slots_of_the_same_length():
    machine = Machine()
    sides = machine.side("a", [0.5]), machine.side("b", [0.125])
    found = machine.alternate(*sides, slots=2, seconds=2.0)
    assert found.seconds == ((0.5, 0.5), (0.125, 0.125)) and found.disturbed == 0
    slot = [("a", 1), ("a", 4), ("b", 1), ("b", 16)]  # each warms up first
    assert machine.log == [("a", 1), ("b", 1), *slot, *slot]


def test_long_work_is_done_once_and_not_warmed_up():
    machine = Machine()
    machine.alternate(machine.side("a", [3.0]), machine.side("b", [9.0]), slots=2)
    assert machine.log == [("a", 1), ("b", 1)] * 2


def test_a_slow_slot_is_repeated_but_not_for_ever():
    machine = Machine()
    found = machine.alternate(machine.side("a", [1.0, 1.0, 5.0, 1.25]), slots=4)
    assert found.seconds == ((1.0, 1.0, 1.25, 1.25),) and found.disturbed == 0
    machine = Machine()
    found = machine.alternate(machine.side("a", [1.0, *[5.0] * TRIES, 1.0]), slots=3)
    assert found.seconds == ((1.0, 5.0, 1.0),) and found.disturbed == 1


def test_a_slot_beside_others_is_repeated():
    # Others are asked before and after each slot.
    machine = Machine(foreign=[0.9, 0.5, 0.9, 0.05])
    found = machine.alternate(machine.side("a", [1.0, 2.0]), slots=1)
    assert found.seconds == ((2.0,),) and found.disturbed == 0


def test_what_a_side_says_it_took_counts():
    machine = Machine()

    def side(times):
        machine.now += 100.0
        return 2.0 * times

    assert machine.alternate(side, slots=2).seconds == ((2.0, 2.0),)


def test_the_first_slot_has_nothing_to_be_compared_with():
    assert not is_disturbed(1e9, [], 0.0)
    assert is_disturbed(1.4, [1.0, 1.0, 9.0], 0.0) and not is_disturbed(1.2, [1.0], 0.0)


def test_others_do_something_between_nothing_and_everything():
    others = Others()
    sum(i * i for i in range(200_000))
    assert 0 <= others.share() <= 1


def test_ratio_is_that_of_medians_and_lies_in_its_interval():
    middle, low, high = ratio([1.0, 2.0, 30.0], [4.0, 4.0, 4.0])
    assert middle == 0.5 and low == 0.25 and high == 7.5
    rng = np.random.default_rng(0)
    noise = rng.uniform(1, 3, 20)  # of the machine: both sides have it
    middle, low, high = ratio(0.5 * noise, noise)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5) and middle == pytest.approx(0.5)


ROWS = [
    Row("a step", "theirs", [0.02, 0.03, 0.02], [0.04] * 3, 1.0),
    Row("tokens", "theirs", [2.0] * 2, [1.0] * 2, 0.5, per=512, unit="tokens"),
    Row("memory", "theirs", [int(1.2e9)], [int(1e9)], 1.0, unit="bytes", disturbed=1),
]


def test_table_has_medians_with_their_units():
    lines = table(ROWS).splitlines()
    assert lines[1] == "|---|---|---|---|---|"
    assert lines[2] == "| a step | theirs | 40.0 ms | 20.0 ms | **0.50** (0.50–0.75) |"
    assert "| 512 tokens/s | 256 tokens/s | **2.00** (2.00–2.00) |" in lines[3]
    assert "| 1.00 GB | 1.20 GB | **1.20**" in lines[4]
    assert "to reach 1.0: reached; 0 of 6 slots" in ROWS[0].verdict()
    assert "NOT reached; 1 of 2" in ROWS[2].verdict()
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
