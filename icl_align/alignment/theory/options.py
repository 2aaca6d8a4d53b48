"""The options of `python -m icl_align.theory`."""

import dataclasses
from typing import Optional

from icl_align.config import FIGURE_FORMATS, option


@dataclasses.dataclass
class TheoryConfig:
    """All options of `python -m icl_align.theory`."""

    run_dir: Optional[str] = option(
        None, "compare the transformers of this run with the construction; null builds and tests it"
    )
    folder: Optional[str] = option(
        None, "where results go; null is runs/theory, or theory/ in the run's folder"
    )
    seed: int = option(
        0, "seed of the random problems and of the repairs", least=0, most=2**31 - 2**16
    )
    num_problems: int = option(32, "random problems for each line of the exactness table", least=1)
    repair_steps: int = option(300, "Adam steps of every repair of a knock-out", least=1)
    repair_seeds: int = option(1, "starts from scratch for each learning rate", least=1, most=2**10)
    num_contexts: int = option(512, "contexts on which a run is compared; needs run_dir", least=8)
    figure_format: str = option("png", "of the figures it leaves", choices=FIGURE_FORMATS)
