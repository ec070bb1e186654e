"""The mapping language: each layout there and back, and what no rule or setting covers."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.hostile import refusal

from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import option
from aigc_jax.interop import settings
from aigc_jax.interop.mapping import ModelTable, TensorRule, layer_modules, module, setting
from aigc_jax.interop.parameters import bind, export_tensor, import_params

RNG = np.random.default_rng(0)


def arrays(**shapes):
    return {k.replace("__", "/"): RNG.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def exported(rules, params, fields=None):
    shapes = {path: array.shape for path, array in params.items()}
    tensors = bind(rules, shapes, "model", fields)
    stored = {tensor.name: export_tensor(tensor, params) for tensor in tensors}
    assert {tensor.name: tensor.shape for tensor in tensors} == {
        name: array.shape for name, array in stored.items()
    }
    found = {name: array.shape for name, array in stored.items()}
    back = flatten_dict(import_params(tensors, shapes, found, stored.__getitem__, "it"), sep="/")
    assert back.keys() == params.keys()
    for path in params:
        np.testing.assert_array_equal(back[path], params[path], path)
    return stored


@pytest.mark.parametrize("window", [(), (5,), (5, 3), (2, 5, 3)], ids=len)
def test_kernels_have_outputs_first_in_any_number_of_dimensions(window):
    params = arrays(conv__kernel=(*window, 4, 6), conv__bias=(6,))
    stored = exported(module("conv", "conv"), params)
    kernel = params["conv/kernel"]
    assert stored["conv.weight"].shape == (6, 4, *window)
    np.testing.assert_array_equal(stored["conv.weight"][5, 3], kernel[..., 3, 5])
    np.testing.assert_array_equal(stored["conv.bias"], params["conv/bias"])


def test_several_parameters_are_joined_and_parts_are_split():
    params = arrays(a__kernel=(4, 6), b__kernel=(4, 2), qkv__kernel=(4, 9))
    joined = module("joined", "a", "b")
    parts = [rule for i in range(3) for rule in module(f"part{i}", "qkv", part=(i, 3))]
    stored = exported((*joined, *parts), params)
    np.testing.assert_array_equal(stored["joined.weight"].T[:, 6:], params["b/kernel"])
    np.testing.assert_array_equal(stored["part1.weight"].T, params["qkv/kernel"][:, 3:6])


def test_stacked_layers_are_one_tensor_each():
    params = arrays(layers__mlp__in__kernel=(3, 4, 6), layers__norm__scale=(3, 4))
    stored = exported(layer_modules("h.", ("fc", "mlp/in"), ("ln", "norm")), params)
    assert len(stored) == 6
    np.testing.assert_array_equal(stored["h.2.fc.weight"].T, params["layers/mlp/in/kernel"][2])
    np.testing.assert_array_equal(stored["h.1.ln.weight"], params["layers/norm/scale"][1])


def test_one_parameter_can_be_several_tensors_of_equal_content():
    params = arrays(embedder__kernel=(4, 6))
    stored = exported((*module("a", "embedder"), *module("b", "embedder")), params)
    np.testing.assert_array_equal(stored["a.weight"], stored["b.weight"])


def test_rotary_pairs_are_neighbours_there_and_halves_here():
    params = arrays(query__kernel=(4, 16))  # two heads of 8 rows
    (rule, *_) = module("query", "query")
    stored = exported([dataclasses.replace(rule, rotary_heads="heads")], params, {"heads": 2})
    ours = params["query/kernel"].T.reshape(2, 2, 4, 4)
    theirs = stored["query.weight"].reshape(2, 4, 2, 4)
    for pair in range(4):
        for half in range(2):
            np.testing.assert_array_equal(theirs[:, pair, half], ours[:, half, pair])


def test_parameters_without_a_rule_and_tensors_that_do_not_fit_are_named():
    shapes = {"a/kernel": (4, 6), "b/kernel": (4, 6)}
    assert "b/kernel" in refusal(bind, module("a", "a"), shapes, "model")
    tensors = bind(module("a", "a"), {"a/kernel": (4, 6)}, "model")
    for stored, word in (({}, "a.weight"), ({"a.weight": (4, 6)}, "(4, 6)")):
        with pytest.raises(UserError) as caught:
            import_params(tensors, {"a/kernel": (4, 6)}, stored, pytest.fail, "it")
        assert word in str(caught.value)


# Settings ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = option(4, low=1)
    bias: bool = True
    out_bias: bool = True
    activation: str = "relu"
    eps: float = 1e-5


TABLE = ModelTable(
    hf="net",
    config=Config,
    settings=(
        setting("hidden", "width"),
        setting("use_bias", "bias", "out_bias", default=False),
        setting("act", "activation", default="ReLU", values=(("ReLU", "relu"), ("SiLU", "silu"))),
    ),
    hf_fixed={"dropout": (False,)},
    aigc_fixed={"eps": 1e-5},
    limits={"width": 100},
)


def test_settings_are_read_and_written():
    fields = settings.read_settings(TABLE, dict(hidden=8, act="SiLU"), "it")
    assert fields == dict(width=8, bias=False, out_bias=False, activation="silu", eps=1e-5)
    assert settings.make_config(TABLE, fields, "it") == Config(8, False, False, "silu")
    written = settings.write_settings(TABLE, fields)
    assert written == dict(hidden=8, use_bias=False, act="SiLU", dropout=False)
    settings.check_keys(TABLE, written | dict(torch_dtype="float32", other=None), "it")


@pytest.mark.parametrize(
    "config, key",
    [
        ({}, "hidden"),
        (dict(hidden="8"), "hidden"),
        (dict(hidden=0), "hidden"),
        (dict(hidden=8, act="GELU"), "act"),
        (dict(hidden=8, use_bias=1), "use_bias"),
    ],
)
def test_settings_that_are_missing_or_not_supported_are_named(config, key):
    assert key in refusal(settings.read_settings, TABLE, config, "it")


def test_keys_that_may_change_the_output_are_named():
    for config, key in (
        (dict(scale=2), "scale"),
        (dict(dropout=True), "dropout"),
        (dict(dropout=0), "dropout"),
    ):
        assert key in refusal(settings.check_keys, TABLE, config, "it")
    assert "width" in refusal(settings.check_limits, TABLE, dict(width=101), "it")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({}, []),
        (dict(bias=False), ["model.bias and model.out_bias"]),
        (dict(activation="tanh"), ["model.activation"]),
        (dict(eps=1e-6), ["model.eps"]),
        (dict(eps=1e-5 * (1 + 1e-9)), []),
        (dict(eps=1e-6, activation="tanh"), ["model.activation", "model.eps"]),
    ],
)
def test_incompatibilities_are_listed(changes, named):
    found = settings.incompatibilities(TABLE, dataclasses.asdict(Config(**changes)))
    assert len(found) == len(named)
    for sentence, word in zip(found, named, strict=True):
        assert word in sentence


def test_a_rule_knows_its_modules():
    rule = TensorRule("h.{layer}.fc.weight", ("layers/a/kernel", "layers/b/kernel"), True)
    assert rule.stacked and rule.is_kernel and rule.hf_module == "h.{layer}.fc"
    assert rule.aigc_modules == ["layers/a", "layers/b"]
