"""Meshes from text."""

import types

import jax
import numpy as np
import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.distributed.mesh import make_mesh, parse_mesh, process_shard


def test_sizes():
    assert parse_mesh("data=-1", 8) == {"data": 8}
    assert parse_mesh(" data = 2 ", 8) == {"data": 2}
    assert dict(make_mesh("data=2").shape) == {"data": 2}


@pytest.mark.parametrize("text", ["", "data", "data=x", "data=0", "data=-2", "data=9", "date=2"])
def test_invalid_mesh_is_rejected(text):
    with pytest.raises(UserError, match="mesh="):
        parse_mesh(text, 8)


@pytest.mark.parametrize(
    "text, message",
    [
        ("data=-1,tensor=3", "data=-1 is not an integer, because 3 does not divide the 8"),
        ("data=3,fsdp=-1", "fsdp=-1 is not an integer, because 3 does not divide the 8"),
        ("fsdp=16", "needs 16 devices, but there are 8"),
        ("data=-1,tensor=16", "needs 16 devices, but there are 8"),
        ("data=0,fsdp=-1", "sizes must be at least 1"),
    ],
)
def test_misfits_are_explained(text, message):
    with pytest.raises(UserError, match=message):
        parse_mesh(text, 8)


def chips(slices=1):
    """Slices of 4×4 chips, whose processes have boxes of 2×2."""
    known = dict(platform="tpu", device_kind="TPU v5 lite", core_on_chip=0)
    places = [(x, y, 0) for y in range(4) for x in range(4)]
    places.sort(key=lambda at: (at[1] // 2, at[0] // 2))
    return [
        types.SimpleNamespace(**known, coords=at, slice_index=n, process_index=4 * n + i // 4)
        for n in range(slices)
        for i, at in enumerate(places)
    ]


def test_devices_that_make_no_box_of_a_slice():
    with pytest.raises(UserError, match=r"3 of 16.*2 or 4"):
        make_mesh("data=3", chips())
    with pytest.raises(UserError, match=r"20 of 32.*16$"):
        make_mesh("data=20", chips(2))


class Placed(types.SimpleNamespace):
    """What `share` looks at of a mesh, data × sequence: whose its devices are."""

    __hash__ = object.__hash__

    def __init__(self, process_RD):
        at = np.vectorize(lambda p: types.SimpleNamespace(process_index=p), otypes=[object])
        rows, columns = np.shape(process_RD)
        super().__init__(devices=at(process_RD), shape=dict(data=rows, sequence=columns))


def shares(process_RD, monkeypatch):
    """What each process reads."""
    found = []
    for process in range(np.max(process_RD) + 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found.append(process_shard(Placed(process_RD)))
    return found


def test_processes_that_share_rows_read_the_same(monkeypatch):
    def of(rows, columns):  # four processes, one after the other
        return shares(np.arange(8).reshape(rows, columns) // 2, monkeypatch)

    assert of(8, 1) == of(4, 2) == [(i, 4) for i in range(4)]
    assert of(2, 4) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert of(1, 8) == [(0, 1)] * 4
    assert shares([[0, 0, 0]] * 4, monkeypatch) == [(0, 1)]


def test_a_process_may_have_rows_between_those_of_another(monkeypatch):
    """As on a slice of TPUs."""
    process_RD = [[0], [1], [0], [1], [2], [3], [2], [3]]
    assert shares(process_RD, monkeypatch) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert shares([[1, 1], [0, 2], [1, 1], [2, 0]], monkeypatch) == [(1, 2), (0, 2), (1, 2)]


@pytest.mark.parametrize(
    "process_RD",
    [
        [[0, 0, 1], [1, 2, 2]],  # a process has parts of two rows
        np.arange(12).reshape(4, 3) // 4,
        [[0], [0], [0], [0], [1], [1]],  # devices are left out
    ],
)
def test_unequal_parts_are_refused_by_every_process(process_RD, monkeypatch):
    for process in range(np.max(process_RD) + 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        with pytest.raises(UserError, match="shard"):
            process_shard(Placed(process_RD))
