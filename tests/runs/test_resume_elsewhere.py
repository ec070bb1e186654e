"""A run that moves to other devices or processes: the same arrays, the same examples."""

import chex
import jax
import numpy as np
import pytest
from helpers import tiny

import aigc_jax
from aigc_jax.data.loader import DataLoader
from aigc_jax.modalities import sources


def train(workdir, steps, devices):
    recipe = tiny.recipe(
        "vae", mesh=f"data={devices}", train=dict(steps=steps), checkpoint=dict(every=0)
    )
    return aigc_jax.train(recipe, str(workdir), progress=False)


def watched():
    """A `fit` that takes no step, and what it saw: the state, on how many devices, which batch."""
    seen = []

    def fit(step_fn, state, feed, **options):
        seen.append((jax.device_get(state), len(state.step.sharding.device_set), feed.taken))
        return state

    return fit, seen


def test_arrays_saved_on_eight_devices_are_restored_on_fewer_and_back(tmp_path, monkeypatch):
    train(tmp_path, 3, 8)
    _, saved, _ = aigc_jax.restore(str(tmp_path))
    saved = jax.device_get(saved)
    fit, seen = watched()
    monkeypatch.setattr("aigc_jax.runs.trainer.fit", fit)
    for devices in (1, 4, 8):
        train(tmp_path, 3, devices)
        state, on, taken = seen.pop()
        assert on == devices and taken == 3
        chex.assert_trees_all_equal(state, saved)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rest_of_an_epoch_is_what_has_not_been_seen(processes, monkeypatch):
    """A run of several processes is resumed by one, in the middle of an epoch."""
    config = tiny.make("vae").config
    source = sources.load_source(config.data).train
    seen = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        batches = DataLoader(source, 8, seed=0, threads=0)
        rows = [batches.next()["image"] for _ in range(5)]
        seen.append(rows)
        position = batches.position()
    monkeypatch.undo()
    alone = DataLoader(source, 8, seed=0, threads=0)
    together = [np.concatenate(rows) for rows in zip(*seen, strict=True)]
    first = [i for k in range(5) for i in alone.example_ids(k)]
    for k, rows in enumerate(together):
        expected = np.stack([source[i]["image"] for i in alone.example_ids(k)])
        np.testing.assert_array_equal(rows, expected)
    alone.seek({**position, "grain": alone.position()["grain"]})
    assert alone.taken == 5
    whole_batches = len(source) // 8
    rest = []
    for k in range(5, whole_batches):
        ids = alone.example_ids(k)
        expected = np.stack([source[i]["image"] for i in ids])
        np.testing.assert_array_equal(alone.next()["image"], expected)
        rest += ids
    assert not set(first) & set(rest) and len(set(rest)) == len(rest)
    left = set(range(len(source))) - set(first) - set(rest)
    assert len(left) == len(source) % 8, (
        "the last examples of the epoch share a batch with the next"
    )
