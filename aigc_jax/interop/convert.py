"""Models of other libraries as workdirs, and workdirs' models as theirs."""

import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.core.files import open_file
from aigc_jax.core.workdir import (
    create_workdir,
    has_run,
    storage_errors,
    write_config,
    write_text_atomically,
)
from aigc_jax.distributed.processes import log_main
from aigc_jax.experiment import build
from aigc_jax.experiment.restore import restore
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.transformer import Transformer
from aigc_jax.interop import convert_images
from aigc_jax.interop.convert_images import Made
from aigc_jax.interop.gguf.gguf import read_gguf
from aigc_jax.interop.peft.export import write_adapter
from aigc_jax.interop.transformers.export import write_folder
from aigc_jax.interop.transformers.folder import Imported, read_folder
from aigc_jax.modalities.spec import TextSpec
from aigc_jax.modalities.text import tokenizer_files
from aigc_jax.modalities.text.tokenizer_files import TOKENIZER, roles, with_settings
from aigc_jax.modalities.text.tokenizers import ByteTokenizer, LibraryTokenizer, Tokenizer
from aigc_jax.training.checkpoint import CheckpointWriter

ORIGIN = "origin.json"  # what a model's own library says of it beside its weights
SEQ_LEN = 512  # of the held-out windows that a converted model is judged on
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def from_other(source: str, workdir: str) -> None:
    """Writes a workdir with the model of `source`, as if trained for 0 steps.

    Args:
      source: hf:DIR, gguf:FILE or diffusers:DIR.
      workdir: must hold no run.

    Raises:
      UserError: if there is no such model, it cannot be held, or the workdir is in use.
    """
    kind, _, path = source.partition(":")
    if kind not in ("hf", "gguf", "diffusers") or not path:
        raise UserError(
            f"--from={shorten(source)} is not of the form hf:DIR or gguf:FILE or diffusers:DIR:"
            f" {did_you_mean(kind, ['hf', 'gguf', 'diffusers'])}"
        )
    if has_run(workdir):
        raise UserError(f"{workdir} holds a run already: choose another --workdir")
    made = convert_images.read(path) if kind == "diffusers" else _read_text(kind, path)
    config = build.parse_config(made.recipe)
    run = build.build(config, made.spec)
    shapes = run.state_shapes()
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    state = jax.device_put(state.replace(params=made.params))
    create_workdir(workdir)
    writer = CheckpointWriter(workdir, keep=1)
    writer.save(0, state, {"asked": False}, {"config": config.raw, "spec": made.spec.to_json()})
    writer.wait()
    writer.close()
    write_config(workdir, config.raw)
    with storage_errors(workdir):
        write_text_atomically(os.path.join(workdir, ORIGIN), json.dumps(made.origin, indent=2))
    for note in made.notes:
        log_main(note)


def _read_text(kind: str, path: str) -> Made:
    """The model of `hf:DIR` or `gguf:FILE` as a run."""
    found = read_folder(path) if kind == "hf" else read_gguf(path)
    tokenizer = _tokenizer(found, path)
    spec = TextSpec(tokenizer, min(SEQ_LEN, found.model["context"]))
    origin = {
        "architecture": found.architecture,
        "dtype": found.dtype,
        "generation": found.generation,
        "specials": _named(path, tokenizer) | found.specials,
    }
    return Made(_recipe(found, spec), spec, {"model": found.params}, origin, found.notes)


def _tokenizer(found: Imported, path: str) -> Tokenizer:
    path = os.path.expanduser(path)
    if found.tokenizer is not None:
        ends = {"config.json": {"eos_token_id": found.specials.get("eos", [])}}
        return with_settings(found.tokenizer, ends)
    if os.path.exists(os.path.join(path, TOKENIZER)):
        return tokenizer_files.read(path)
    tokenizer = ByteTokenizer()
    if found.model["vocab_size"] < tokenizer.size:
        raise UserError(
            f"{shorten(path)} holds no {TOKENIZER}: save the model's fast tokenizer there with"
            " save_pretrained of transformers"
        )
    log_main(f"{path} holds no {TOKENIZER}: the model reads bytes, which only suits random weights")
    return tokenizer


def _named(path: str, tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens that the files of a folder name beside those of config.json."""
    path = os.path.expanduser(path)
    if not os.path.isdir(path) or not isinstance(tokenizer, LibraryTokenizer):
        return {}
    return roles(path, tokenizer.to_library())


def _recipe(found: Imported, spec: TextSpec) -> dict[str, Any]:
    """The config of a run that does not train: what a person fine-tunes has one of its own."""
    causal, sample = found.model["causal"], {"num": 1}
    if causal and found.generation.get("do_sample"):
        sample |= {k: v for k in SAMPLING if (v := found.generation.get(k)) is not None}
    return dict(
        mesh="data=1",  # batches of one do not divide by many devices
        data=dict(source="python_docs", seq_len=spec.seq_len, tokenizer="byte", batch_size=1),
        model=dict(name="transformer", **found.model),
        objective=dict(name="lm" if causal else "masked_lm"),
        optim=dict(name="none"),
        train=dict(steps=0),
        eval=dict(batch_size=4),
        sample=sample,
    )


def to_other(workdir: str, target: str, dtype: str | None = None) -> str:
    """Writes the workdir's model as `hf:DIR`, adapters merged, or its adapters as `peft:DIR`.

    An image model is written as `diffusers:DIR`.

    Args:
      workdir: a run of a transformer over text, or of a model of images that diffusers has.
      target: where to.
      dtype: of the weights; that of the model which was converted, otherwise float32.

    Returns:
      The folder.

    Raises:
      UserError: if the model is none that the other library has, or the folder is in use.
    """
    kind, _, path = target.partition(":")
    if kind not in ("hf", "peft", "diffusers") or not path:
        raise UserError(
            f"--to={shorten(target)} is not of the form hf:DIR or peft:DIR or diffusers:DIR"
        )
    run, state, _ = restore(workdir)
    if kind == "diffusers":
        dtype = dtype or _origin(workdir).get("dtype", "float32")
        convert_images.write(path, run, jax.device_get(state.sampling_params), workdir, dtype)
        return path
    model = getattr(run.objective, "model", None)
    if not isinstance(model, Transformer):
        raise UserError(f"{workdir} holds no transformer over text: nothing else can be given out")
    config = _resolved(model)
    params, origin = jax.device_get(state.sampling_params), _origin(workdir)
    if not origin and run.config.train.init_from:  # fine-tuned in float32, but of the same kind
        origin = _origin(run.config.train.init_from) | {"dtype": "float32"}
    architecture = origin.get("architecture", "")  # "": the plainest that fits
    if kind == "peft":
        if "base" not in params:
            raise UserError(f"{workdir} has no adapters: give the model out with --to=hf:DIR")
        write_adapter(path, config, lora.join_variables(params)["lora"], architecture=architecture)
        if base := run.config.train.init_from:
            log_main(f"they belong to the model of {base}: give it out with --to=hf:DIR")
        return path
    params = dict(run.objective.merge_adapters(params)["model"])
    if params.pop("task_head", None) is not None:
        log_main("the head of the task stays behind: transformers has none of the kind")
    tokenizer = run.spec.tokenizer
    specials = origin["specials"] if "specials" in origin else _specials(tokenizer)
    write_folder(
        path,
        config,
        params,
        dtype=dtype or origin.get("dtype", "float32"),
        tokenizer=tokenizer.to_library(),
        specials=specials,
        generation=origin.get("generation"),
        architecture=architecture,
    )
    return path


def _resolved(model: Transformer) -> Any:
    """The model's config with the sizes that the data gave it."""
    return dataclasses.replace(model.config, vocab_size=model.vocab_size, context=model.context)


def _specials(tokenizer: Tokenizer) -> dict[str, int | list[int]]:
    """The ids of a tokenizer's special tokens by their role."""
    specials: dict[str, int | list[int]] = {"eos": _one_or_several(tokenizer.stops)}
    if tokenizer.prefix:
        specials["bos"] = tokenizer.prefix[0]
    if tokenizer.mask is not None:
        specials["mask"] = tokenizer.mask
    return specials


def _one_or_several(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


def _origin(workdir: str) -> dict[str, Any]:
    """What is known of a converted model; nothing of others."""
    path = os.path.join(workdir, ORIGIN)
    if not os.path.exists(path):
        return {}
    with open_file(path) as f:
        return json.loads(f.read())
