"""Reads records of TFDS data sets and decodes selected features."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, one_line, shorten
from aigc_jax.data.array_record_reader import Shards

Decoder = Callable[[bytes, tuple[int, ...]], np.ndarray]  # (encoded value, shape) → array


class TfdsRecords:
    """Examples of a split, with only some features decoded.

    Args:
      builder: TFDS builder of the data set.
      split: the split's name.
      used: the features to decode.
      where: name of the data set in messages.
      window: number of records that are shuffled together; see `shuffle.WindowShuffle`.
      decoders: functions from (encoded value, shape) to an array, by feature.

    Attributes:
      ends: number of records up to the end of each file, (F,).

    Raises:
      ValueError: if the files do not match the description.
    """

    def __init__(
        self,
        builder: Any,
        split: str,
        used: Sequence[str],
        where: str,
        window: int,
        decoders: Mapping[str, Decoder] | None = None,
    ):
        import tensorflow_datasets as tfds

        info = builder.info.splits[split]
        paths = [os.fspath(path) for path in info.filepaths]
        lengths = list(info.shard_lengths)
        if min(lengths) < 0 or len(paths) != len(lengths):
            raise ValueError(f"its files have {shorten(lengths, 80)} records")
        self._raw = Shards(paths, lengths, 2 * window)
        self._raw.check()
        self._where = where
        features = builder.info.features
        chosen = {key: features[key] for key in used if key in features}
        self._features = tfds.features.FeaturesDict(chosen)
        if '"zlib"' in json.dumps(self._features.to_json()):
            raise ValueError("its tensors are compressed by zlib, and could unpack to any size")
        self._decoders = {
            key: (decode, tuple(chosen[key].shape))
            for key, decode in (decoders or {}).items()
            if isinstance(chosen.get(key), tfds.features.Image)
        }
        self._encoded = {key: tfds.decode.SkipDecoding() for key in self._decoders}
        self._classes: int = getattr(chosen.get("label"), "num_classes", 0) or 0

    @property
    def ends(self) -> np.ndarray:
        return self._raw.ends

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one example.

        Raises:
          UserError: if it is damaged, or does not match the description.
        """
        try:
            record = self._features.deserialize_example_np(
                self._raw[index], decoders=self._encoded or None
            )
            for key, (decode, shape) in self._decoders.items():
                record[key] = decode(record[key], shape)
            if self._classes and not 0 <= record["label"] < self._classes:
                raise ValueError(
                    f"its label {record['label']} is not one of {self._classes} classes"
                )
            return record
        except Exception as e:  # TFDS, protobuf and array_record raise many types
            raise UserError(
                f"record {index} of {self._where} cannot be read ({one_line(e)}): prepare the data"
                " set again"
            ) from e

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))
