"""Low-rank adapters (Hu et al. 2021) as players: the adapters are trained, their base is frozen."""

from collections.abc import Mapping
from typing import Any

Params = dict[str, Any]
UNFROZEN = ("task_head",)  # trained beside adapters, as it has not been pretrained


def split_variables(variables: Mapping[str, Any]) -> Params:
    """Variables → `{player: parameters}`: `model` is trained; `base`, under adapters, is frozen."""
    params = variables["params"]
    if "lora" not in variables:
        return {"model": params}
    own = {name: params[name] for name in UNFROZEN if name in params}
    base = {name: part for name, part in params.items() if name not in own}
    return {"model": {"lora": variables["lora"], **own}, "base": base}


def join_variables(params: Params) -> dict[str, Any]:
    """The inverse of `split_variables`: variables as `apply` takes them."""
    if "base" not in params:
        return {"params": params["model"]}
    own = dict(params["model"])
    return {"lora": own.pop("lora"), "params": {**params["base"], **own}}


def merge_adapters(params: Params, scale: float) -> Params:
    """One player whose kernels are kernel + a b · scale; unchanged without adapters.

    Args:
      params: `{player: parameters}`.
      scale: alpha / rank.
    """
    if "base" not in params:
        return params
    variables = join_variables(params)

    def merge(kernels: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        if "lora_a" in changes:
            change = changes["lora_a"] @ changes["lora_b"]  # stacked over layers
            return {**kernels, "kernel": kernels["kernel"] + change * scale}
        return {k: merge(v, changes[k]) if k in changes else v for k, v in kernels.items()}

    return {"model": merge(variables["params"], variables["lora"])}
