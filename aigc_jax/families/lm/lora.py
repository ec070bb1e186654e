"""A model's variables as players: with low-rank adapters, the model itself is a frozen player."""

from typing import Any

Params = dict[str, Any]
UNFROZEN = ("task_head",)  # trained beside adapters, as it begins from nothing


def split_variables(variables: dict[str, Any]) -> Params:
    """`{player: parameters}`: what is trained is `model`; what adapters leave frozen is `base`."""
    params = variables["params"]
    if "lora" not in variables:
        return {"model": params}
    own = {name: params[name] for name in UNFROZEN if name in params}
    base = {name: part for name, part in params.items() if name not in own}
    return {"model": {"lora": variables["lora"], **own}, "base": base}


def join_variables(params: Params) -> dict[str, Any]:
    """The inverse of `split`, as `apply` takes them."""
    if "base" not in params:
        return {"params": params["model"]}
    own = dict(params["model"])
    return {"lora": own.pop("lora"), "params": {**params["base"], **own}}


def merge_adapters(params: Params, scale: float) -> Params:
    """One player whose kernels have the adapters in them: kernel + a b · scale.

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
