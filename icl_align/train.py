"""Trains a transformer, compares it with every other learner, and leaves a run folder.

python -m icl_align.train [KEY=VALUE ...]; --help lists every option.
"""

import sys
import time

from icl_align import CommandModule
from icl_align.running.cli import run_with_hydra
from icl_align.running.command import begin

BEGAN = time.time() - time.process_time()  # the start of the process: all it did was compute


def job(node) -> float:
    """One run under Hydra, in the folder that Hydra chose.

    Returns:
      The loss at the end of training, for a sweeper that searches.
    """
    from icl_align.running.shares import keep_share

    keep_share()  # before JAX starts its threads
    from icl_align.running.job import run_in_hydra_folder

    return run_in_hydra_folder(node, BEGAN)


def main() -> None:
    """The command `python -m icl_align.train`."""
    begin()
    run_with_hydra(job)


sys.modules[__name__].__class__ = CommandModule
if __name__ == "__main__":
    main()
