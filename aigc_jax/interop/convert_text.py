"""Text models of other libraries as runs, and runs of transformers in the form of transformers."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, cast

from aigc_jax.core.capabilities import SupportsMergedAdapters
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.distributed.main_process import log_main
from aigc_jax.experiment.build import Run
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.transformer import TransformerConfig
from aigc_jax.interop.converted_run import ConvertedRun, read_origin, untrained_recipe
from aigc_jax.interop.gguf.read_file import read_gguf_file
from aigc_jax.interop.peft.read_folder import read_peft_folder
from aigc_jax.interop.peft.write_folder import write_peft_folder
from aigc_jax.interop.transformers.read_folder import ImportedText, read_hf_folder
from aigc_jax.interop.transformers.write_folder import write_hf_folder
from aigc_jax.modalities.text import tokenizer_files
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizer_files import TOKENIZER, roles, with_settings
from aigc_jax.modalities.text.tokenizers import ByteTokenizer, LibraryTokenizer, Tokenizer

MODELS, CAPABILITY = ("transformer",), SupportsMergedAdapters
BASES = {"hf": read_hf_folder, "gguf": read_gguf_file}  # models that adapters can be for
SEQ_LEN = 512  # of the held-out windows that a converted model is evaluated on
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

# Importing ----------------------------------------------------------------------------------------


def import_hf(path: str, base: str = "") -> ConvertedRun:
    """Reads the model in a folder of transformers as a run."""
    return _converted(read_hf_folder(path), path)


def import_gguf(path: str, base: str = "") -> ConvertedRun:
    """Reads the model in a GGUF file as a run."""
    return _converted(read_gguf_file(path), path)


def import_peft(path: str, base: str = "") -> ConvertedRun:
    """Reads the adapters in a folder of PEFT as a run with a frozen base.

    Args:
      path: the folder.
      base: hf:DIR or gguf:FILE, the model that they adapt; "": the local folder that they name.

    Raises:
      UserError: if the base is unknown, or the adapters are not for it.
    """
    adapter = read_peft_folder(path)
    if not base:
        if not adapter.base or not os.path.isdir(os.path.expanduser(adapter.base)):
            name = shorten(adapter.base, 80) if adapter.base else "no model"
            raise UserError(
                f"{shorten(path)} names {name} as its base, which is not a folder here: give the"
                " folder of that model as --base=hf:DIR"
            )
        base = f"hf:{adapter.base}"
    kind, _, base_path = base.partition(":")
    if kind not in BASES or not base_path:
        raise UserError(f"--base={shorten(base)} is not of the form hf:DIR or gguf:FILE")
    found = BASES[kind](base_path)
    if found.architecture not in adapter.architectures:
        raise UserError(
            f"{shorten(path)} has adapters for {' or '.join(adapter.architectures)}, but the base"
            f" in {shorten(base_path)} is {found.architecture}"
        )
    adapter.check_base(TransformerConfig(**found.model), path)
    run = _converted(found, base_path)
    run.recipe["model"] |= dict(
        lora_rank=adapter.rank, lora_alpha=adapter.alpha, lora_targets=adapter.targets
    )
    params = lora.split_variables({"params": found.params, "lora": adapter.lora})
    origin = run.origin | {"dtype": "float32", "adapter_base": adapter.base}
    return dataclasses.replace(run, params=params, origin=origin)


def _converted(found: ImportedText, path: str) -> ConvertedRun:
    tokenizer = _find_tokenizer(found, path)
    spec = TextSpec(tokenizer, min(SEQ_LEN, found.model["context"]))
    causal, sample = found.model["causal"], {"num": 1}
    if causal and found.generation.get("do_sample"):
        sample |= {k: v for k in SAMPLING if (v := found.generation.get(k)) is not None}
    recipe = untrained_recipe(
        data=dict(source="python_docs", seq_len=spec.seq_len, tokenizer="byte", batch_size=1),
        model=dict(name="transformer", **found.model),
        objective=dict(name="lm" if causal else "masked_lm"),
        sample=sample,
    )
    origin = {
        "architecture": found.architecture,
        "dtype": found.dtype,
        "generation": found.generation,
        "specials": _tokenizer_roles(path, tokenizer) | found.specials,
    }
    return ConvertedRun(recipe, spec, {"model": found.params}, origin, found.notes)


def _find_tokenizer(found: ImportedText, path: str) -> Tokenizer:
    """Returns the tokenizer of the file or folder; bytes if it has none."""
    path = os.path.expanduser(path)
    if found.tokenizer is not None:
        ends = {"config.json": {"eos_token_id": found.specials.get("eos", [])}}
        return with_settings(found.tokenizer, ends)
    if os.path.exists(os.path.join(path, TOKENIZER)):
        return tokenizer_files.read_tokenizer(path)
    tokenizer = ByteTokenizer()
    if found.model["vocab_size"] < tokenizer.size:
        raise UserError(
            f"{shorten(path)} has no {TOKENIZER}: save the model's fast tokenizer there with"
            " save_pretrained of transformers"
        )
    log_main(f"{path} has no {TOKENIZER}: the model reads bytes, which only suits random weights")
    return tokenizer


def _tokenizer_roles(path: str, tokenizer: Tokenizer) -> dict[str, int]:
    """Returns the special tokens that the tokenizer's files in a folder name."""
    path = os.path.expanduser(path)
    if not os.path.isdir(path) or not isinstance(tokenizer, LibraryTokenizer):
        return {}
    return roles(path, tokenizer.to_library())


# Exporting ----------------------------------------------------------------------------------------


def export_hf(
    path: str, run: Run, params: Mapping[str, Any], *, workdir: str, dtype: str | None
) -> None:
    """Writes a run's transformer, adapters merged, as a folder of transformers."""
    origin = _find_origin(run, workdir)
    objective = cast(SupportsMergedAdapters, run.objective)  # as `convert` has checked
    model = dict(objective.merge_adapters(dict(params))["model"])
    if model.pop("task_head", None) is not None:
        log_main("the task's head is left out: transformers has no equivalent")
    tokenizer = cast(TextSpec, run.spec).tokenizer
    write_hf_folder(
        path,
        _resolved(run, model),
        model,
        dtype=dtype or origin.get("dtype", "float32"),
        tokenizer=tokenizer.to_library(),
        specials=origin["specials"] if "specials" in origin else _special_ids(tokenizer),
        generation=origin.get("generation"),
        architecture=origin.get("architecture", ""),
    )


def export_peft(
    path: str, run: Run, params: Mapping[str, Any], *, workdir: str, dtype: str | None
) -> None:
    """Writes a run's adapters as a folder of PEFT, in float32."""
    if "base" not in params:
        raise UserError(f"{workdir} has no adapters: export the model with --to=hf:DIR")
    variables, origin = lora.join_variables(dict(params)), _find_origin(run, workdir)
    write_peft_folder(
        path,
        _resolved(run, variables["params"]),
        variables["lora"],
        origin.get("adapter_base", ""),
        architecture=origin.get("architecture", ""),
    )
    if base := run.config.train.init_from:
        log_main(f"the adapters are for the model of {base}: export it with --to=hf:DIR")


def _find_origin(run: Run, workdir: str) -> dict[str, Any]:
    """Returns the origin of the workdir's model, or of that which it was initialised from."""
    origin = read_origin(workdir)
    if not origin and run.config.train.init_from:
        origin = read_origin(run.config.train.init_from)
        return origin | {"dtype": "float32"} if origin else {}  # in which it was fine-tuned
    return origin


def _resolved(run: Run, params: Mapping[str, Any]) -> TransformerConfig:
    """Returns the model's config with the sizes that the data gave it."""
    config = run.config.model
    return dataclasses.replace(
        config,
        vocab_size=params["token_embedding"]["embedding"].shape[0],
        context=config.context or cast(TextSpec, run.spec).seq_len,
    )


def _special_ids(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """Returns the ids of a tokenizer's special tokens by their role."""
    stops = tokenizer.stops
    specials: dict[str, int | list[int]] = {"eos": stops[0] if len(stops) == 1 else list(stops)}
    if tokenizer.prefix:
        specials["bos"] = tokenizer.prefix[0]
    if tokenizer.mask is not None:
        specials["mask"] = tokenizer.mask
    return specials
