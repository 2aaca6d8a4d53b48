"""Several small programs at once, one on each core."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from icl_align.running.shares import visible_cores


def in_parallel(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    progress: Callable[[float], None] = lambda fraction: None,
) -> list[Any]:
    """The results of `function` for each item, in their order.

    Threads, since compiling and running both happen outside of Python's lock, and tiny programs
    fill no more than one core each.

    Args:
      function: called with one item.
      items: what to call it with.
      progress: called from this thread with the share that is done, in [0, 1].
    """
    with ThreadPoolExecutor(max_workers=len(visible_cores()) or os.cpu_count()) as pool:
        running = [pool.submit(function, item) for item in items]
        for done, future in enumerate(running, start=1):
            future.result()
            progress(done / len(items))
        return [future.result() for future in running]
