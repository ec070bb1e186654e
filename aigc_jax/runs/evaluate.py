"""Evaluates a trained workdir on held-out data."""

import dataclasses
import os
from typing import Any

from aigc_jax.core.config import Data
from aigc_jax.core.modality import check_spec
from aigc_jax.data.dataset import Dataset
from aigc_jax.evaluation.evaluator import Evaluator
from aigc_jax.experiment import build
from aigc_jax.experiment.eval_options import override_eval
from aigc_jax.experiment.python_parts import Network
from aigc_jax.experiment.restore import restore
from aigc_jax.modalities import sources
from aigc_jax.modalities.in_memory import dataset_from_python
from aigc_jax.modalities.text.spec import text_tokenizer
from aigc_jax.training.posthoc_ema import reconstruct_ema


def evaluate(
    workdir: str,
    data_dir: str = "",
    source: str = "",
    *,
    sigma_rel: float | None = None,
    mesh: str = "",
    data: Any = None,
    network: Network | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Returns held-out metrics, including `loss`, of a workdir's newest checkpoint.

    For classes and tags, `report` has scores per class. For images, samples are written next to
    their nearest training images to `samples/neighbours.png`.

    Args:
      workdir: a trained run's folder.
      data_dir: folder of prepared data sets; defaults to that of the run.
      source: other data to evaluate on, as in `data.source`.
      sigma_rel: relative width of the power-function average to use; needs `ema.sigma_rels`.
      mesh: mesh, as in a config; one device by default.
      data: examples passed from Python to evaluate on, as for `train`.
      network: the network of the run, if it was passed from Python and cannot be imported.
      **options: fields of the config section `eval` and of the modality's, such as `eval.image`:
        `num_samples=500, features="efficientnet-lite0"`.

    Raises:
      UserError: if there is no checkpoint, or its data cannot be found.
    """
    run, state, step = restore(workdir, mesh, network=network, optimizer=False)
    if sigma_rel is not None:
        state = reconstruct_ema(workdir, state, sigma_rel)
    section = override_eval(run.config.eval, run.spec.modality, options)
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, eval=section))
    given: dict[str, Any] = {k: v for k, v in {"data_dir": data_dir, "source": source}.items() if v}
    config = dataclasses.replace(run.config.data, **given)
    dataset = _dataset(run, config, data, bool(source))
    check_spec(workdir, run.spec.to_json(), dataset.spec, config.source)
    folder = os.path.expanduser(workdir)
    return {"step": step, **Evaluator(run, dataset, source=config.source, folder=folder)(state)}


def _dataset(run: build.Run, config: Data, data: Any, other: bool) -> Dataset:
    """Loads the data to evaluate on, with the tokenizer of the run.

    Args:
      run: the trained run.
      config: the section `data`.
      data: examples passed from Python; None for those of `config.source`.
      other: whether the source differs from that of the run.
    """
    tokenizer = text_tokenizer(run.spec)
    if data is not None:
        return dataset_from_python(data, config, tokenizer)
    return sources.load_source(config, tokenizer, run.spec if other else None)
