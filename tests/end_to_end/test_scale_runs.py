"""Runs on mixtures and on text that is not held: killed and given again, they end the same."""

import json

import pytest
from helpers.runs import same_runs, train

from aigc_jax.modalities.prepare import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of data sets, with one of text."""
    folder = tmp_path_factory.mktemp("data")
    with open(folder / "d.jsonl", "w") as f:
        f.writelines(json.dumps({"text": f"document {i} " * (i % 9 + 1)}) + "\n" for i in range(60))
    prepare(f"jsonl:{folder / 'd.jsonl'}", "own", str(folder))
    return folder


@pytest.mark.parametrize("source", ["tfds:own", "mix:3*tfds:own,1*python_docs"])
def test_streams_resume_at_their_position(tmp_path, folder, source):
    data = dict(source=source, data_dir=str(folder), format="stream", in_memory=0)
    for workdir, ends in (("a", [6]), ("b", [3, 6])):
        for end in ends:
            train("lm", tmp_path / workdir, data=data, train=dict(steps=end))
    same_runs(tmp_path / "a", tmp_path / "b")
