"""How fast this machine's main memory copies, by all cores at once."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil

from benchmarks.worker import Contender


class Copy(Contender):
    """A large array copied into another one.

    Args:
      num_bytes: of the array; a copy reads and writes so many.
    """

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes

    def build(self) -> dict[str, Any]:
        """Makes the arrays and copies once."""
        process = psutil.Process()
        linux = hasattr(process, "cpu_affinity")
        cores = len(process.cpu_affinity()) if linux else os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(cores)
        source = np.ones(self.num_bytes // 4, np.float32)
        pairs = zip(
            np.array_split(source, cores),
            np.array_split(np.empty_like(source), cores),
            strict=True,
        )
        self.parts = list(pairs)
        self.steps(1)
        return {}

    def steps(self, count: int) -> dict[str, float]:
        """Copies `count` times; the seconds."""
        begun = time.perf_counter()
        for _ in range(count):  # numpy lets the other threads run while it copies
            list(self.pool.map(lambda part: np.copyto(part[1], part[0]), self.parts))
        return {"seconds": time.perf_counter() - begun}
