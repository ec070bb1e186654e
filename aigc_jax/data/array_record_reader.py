"""Reads sharded ArrayRecord files, local or in an object store.

A file is opened when one of its records is first read. The index of an open file takes 8 bytes per
record, so the number of records in open files is bounded; `shuffle.WindowShuffle` reads shard by
shard.
"""

import collections
import os
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from aigc_jax.core.files import is_remote, open_file

NATIVE = "gs://"  # read by ArrayRecord's own reader, by ranges of bytes
OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # for random access
BUFFER = 1 << 15  # bytes


class Shards:
    """Random access to the records of consecutive files.

    Args:
      paths: paths of the files; anything that `etils.epath` reads.
      lengths: number of records of each file.
      max_open_records: number of records in open files; at least one file is open.

    Attributes:
      ends: number of records up to the end of each file, (F,).
      opened: number of file openings, for tests.
    """

    def __init__(self, paths: Sequence[str], lengths: Sequence[int], max_open_records: int):
        self._paths, self._max_open_records = list(paths), max_open_records
        self.ends = np.cumsum(np.array(lengths, np.int64))
        self._open: collections.OrderedDict[int, _Shard] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.opened = 0

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> bytes:
        """Returns one record.

        Raises:
          ValueError: if its file has an unexpected number of records.
          RuntimeError, OSError, UserError: if it cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self.ends, index, "right"))
        return self._shard(shard).read(index - self._first(shard))

    def check(self) -> None:
        """Opens the first and the last file; raises the same errors as indexing."""
        for index in (0, len(self) - 1):
            self[index]

    def _first(self, shard: int) -> int:
        return int(self.ends[shard - 1]) if shard else 0

    def _length(self, shard: int) -> int:
        return int(self.ends[shard]) - self._first(shard)

    def _shard(self, shard: int) -> "_Shard":
        with self._lock:
            if shard not in self._open:
                self._open[shard] = _Shard(self._paths[shard], self._length(shard))
                self.opened += 1
            self._open.move_to_end(shard)
            limit = self._max_open_records
            while len(self._open) > 1 and sum(map(self._length, self._open)) > limit:
                self._open.popitem(last=False)  # closed when its last reader has finished
            return self._open[shard]


class _Shard:
    """One file, opened when it is first read."""

    def __init__(self, path: str, length: int):
        self._path, self._length = path, length
        self._lock = threading.Lock()
        self._reader: Any = None

    def read(self, position: int) -> bytes:
        with self._lock:
            if self._reader is None:
                self._reader = self._opened()
        return self._reader.read([position])[0]

    def _opened(self) -> Any:
        name = self._path.rpartition("/")[2]
        if is_remote(self._path) and not self._path.startswith(NATIVE):
            with tempfile.TemporaryDirectory(prefix="aigc-shard-") as folder:
                copy = os.path.join(folder, name)
                epath.Path(self._path).copy(copy)
                reader = _reader(copy)  # keeps the file open after its name is removed
        else:
            if not is_remote(self._path):
                open_file(self._path).close()  # only a regular file: a pipe could block forever
            reader = _reader(self._path)
        if not reader.ok():
            reader.close()  # raises the cause
        if reader.num_records() != self._length:
            raise ValueError(f"{name} has {reader.num_records()} records, not {self._length}")
        return reader


def _reader(path: str) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, options=OPTIONS, file_reader_buffer_size=BUFFER)
