"""A modality that the library does not have, all of it here: waveforms (T, C) as bytes."""

import dataclasses
from typing import ClassVar

import numpy as np

from aigc_jax.core.fields import option
from aigc_jax.core.modality import LEVELS, MODALITIES, MODELLED, Field, Modality
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.raw_dataset import ColumnarExamples, RawDataset
from aigc_jax.modalities.metric import METRICS, Metric
from aigc_jax.modalities.registries import DATASET_BUILDERS
from aigc_jax.modalities.sources import DATA_SOURCES

LENGTH = 16


@dataclasses.dataclass(frozen=True)
class WaveformSpec:
    shape: tuple[int, int]
    levels: int = 256
    class_names: tuple[str, ...] = ()
    modality = "waveform"
    num_classes = 0

    @property
    def fields(self):
        return {"waveform": Field(LEVELS, MODELLED)}

    def example_batch(self, size):
        waveform = np.zeros((size, *self.shape), np.uint8)
        return {"waveform": waveform, "weight": np.ones(size, np.float32)}

    def to_json(self):
        return {"modality": "waveform", "shape": list(self.shape)}


@dataclasses.dataclass(frozen=True)
class WaveformEval:
    RESUMABLE: ClassVar[bool] = True
    threshold: int = option(128, low=0)


class Loudness(Metric):
    """The share of values of samples beyond a threshold."""

    def __call__(self, context, model):
        waves = model.samples(context.config.num_samples or 4)
        return {"loudness": float((waves >= context.options.threshold).mean())}


class Range(Metric):
    """A metric that only a config names."""

    needs_params = False

    def supports(self, context):
        return "waveform" in context.spec.fields

    def __call__(self, context, model):
        waves = [context.dataset.validation[i]["waveform"] for i in range(3)]
        return {"range": float(np.ptp(waves)), "seen_loss": model.metrics["loss"]}


class WaveformModality(Modality):
    name, suffix, unit = "waveform", ".wave", "samples"
    metrics = ("loudness",)
    eval_options = WaveformEval

    def spec_from_json(self, value):
        length, channels = value["shape"]
        return WaveformSpec((int(length), int(channels)))

    def is_samples(self, samples):
        return isinstance(samples, np.ndarray) and samples.ndim == 3

    def units_per_example(self, spec):
        return spec.shape[0]

    def save(self, samples, path):
        with open(path, "wb") as f:
            f.write(samples.tobytes())
        return path


class Waves:
    """Examples in memory."""

    def __init__(self, waves):
        self.waves = waves

    def __len__(self):
        return len(self.waves)

    def __getitem__(self, index):
        return {"waveform": self.waves[index], "weight": np.float32(1)}


def waves(argument, config):
    """Sines of random phases."""
    phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (int(argument), 1))
    sine = np.sin(2 * np.pi * np.arange(LENGTH) / LENGTH + phase)
    return RawDataset(
        {"train": ColumnarExamples(waveform=np.round(127.5 * (sine[..., None] + 1)))},
        kind="waveform",
    )


def waveform_dataset(raw, config, *_):
    waves = raw.splits["train"].values["waveform"].astype(np.uint8)
    held_out = len(waves) // 4
    spec = WaveformSpec(waves.shape[1:])
    return Dataset(spec, Waves(waves[held_out:]), Waves(waves[:held_out]))


MODALITIES.register("waveform", WaveformModality())
METRICS.register("loudness", Loudness)
DATASET_BUILDERS.register("waveform", waveform_dataset)
DATA_SOURCES.register("waves", waves)
