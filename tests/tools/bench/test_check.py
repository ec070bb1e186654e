"""A baseline of ratios: what has become slower is told."""

import json

import pytest

from aigc_jax.core.errors import UserError
from aigc_jax.tools.bench import check


def entry(ratio):
    return {"ratio": ratio, "spread": 0.01, "seconds": ratio / 100, "disturbed": 0}


def baseline(tmp_path, **ratios):
    path = str(tmp_path / "baseline.json")
    configs = {name.split(" ")[0]: f"{name}.py" for name in ratios}
    check.write_baseline(path, lambda _: {k: entry(v) for k, v in ratios.items()})
    with open(path) as f:
        written = json.load(f)
    assert written["configs"] == check.CONFIGS and "device" in written["machine"]
    with open(path, "w") as f:
        json.dump(written | {"configs": configs}, f)
    return path


def measuring(*answers):
    """Answers to one measurement after the other, and which configs each was asked for."""
    asked, answers = [], iter(answers)

    def measured(configs):
        asked.append(sorted(configs))
        return {k: entry(v) for k, v in next(answers).items()}

    return asked, measured


def test_as_fast_as_before(tmp_path, capsys):
    path = baseline(tmp_path, a=10.0, b=2.0)
    asked, measured = measuring({"a": 11.4, "b": 1.0})
    assert check.check_baseline(path, measured) == 0
    assert asked == [["a", "b"]]
    out = capsys.readouterr().out
    assert "+14.0%" in out and "-50.0%" in out and "slower" not in out


def test_slower_result_is_measured_again_and_reported(tmp_path, capsys):
    path = baseline(tmp_path, a=10.0, b=2.0)
    asked, measured = measuring({"a": 11.6, "b": 2.0}, {"a": 11.7})
    assert check.check_baseline(path, measured) == 1
    assert asked == [["a", "b"], ["a"]]
    (line,) = [li for li in capsys.readouterr().out.splitlines() if "slower" in li]
    assert line.startswith("a ") and "+16.0%" in line


def test_a_disturbance_is_no_regression(tmp_path):
    path = baseline(tmp_path, a=10.0)
    asked, measured = measuring({"a": 20.0}, {"a": 10.1})
    assert check.check_baseline(path, measured) == 0 and len(asked) == 2


def test_ratios_are_to_the_product_at_the_same_turn():
    found = check.ratios(
        {"x": "x.py"},
        rounds=3,
        sides_of=lambda name, path: {f"{name} step": lambda: 6.0, f"{name} token": lambda: 1.0},
        probe=lambda: 2.0,
    )
    assert found["x step"]["ratio"] == 3 and found["x token"]["ratio"] == 0.5
    assert found["x step"]["seconds"] == 6


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"configs": {}}', '{"configs": 1}'])
def test_invalid_baseline_is_rejected(tmp_path, text):
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="--write_baseline"):
        check.check_baseline(str(path))
