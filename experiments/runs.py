"""One configuration of a campaign with its folder, what is read of it, and jobs of several.

Runs whose configurations differ only in numbers that need no recompiling train together.
"""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claim import Reading, StudyReading
from icl_align.attack import FILE as ATTACKS_FILE
from icl_align.attack import read_attacks
from icl_align.config import (
    TRAINING,
    Config,
    concerned,
    differences,
    leaves,
    setting,
)
from icl_align.running.curves_file import read_curves
from icl_align.running.evaluation import are_of
from icl_align.running.files import DamagedFileError, write_json
from icl_align.running.metrics_file import read_rows
from icl_align.running.reevaluation import evaluation_config, evaluation_folder
from icl_align.running.study import is_studied, read_study
from icl_align.running.sweeps import final_loss
from icl_align.world import world_of

LARGEST_SHARE_BEFORE_EVALUATION = 0.95
NOT_LEARNED = "not_learned.txt"
LEFT_OUT = ("wandb", "evaluation", "num_seeds", "seed")  # training does not differ by them
CONFIG = Path(".hydra", "config.yaml")  # written when a run begins


def identity(config: Config) -> str:
    """A digest of all options that training depends on."""
    trained = concerned(config, TRAINING)
    parts = [(key, value) for key, _, value in leaves(config) if key in trained]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def trained_differently(base: Config, config: Config) -> list[str]:
    """Options in which a run is trained otherwise than the base, as KEY=VALUE; seeds are not."""
    changed = differences(base, config).items()
    return [setting(key, new) for key, (_, new) in changed if not key.startswith(LEFT_OUT)]


@dataclasses.dataclass
class Run:
    """One configuration of a campaign, with its folder and what else it needs.

    Attributes:
      config, folder: of the run.
      tags: claims that read it.
      evaluations: overrides of its other evaluations.
      attacks: options of the attacks on it.
    """

    config: Config
    folder: Path
    tags: set[str] = dataclasses.field(default_factory=set)
    evaluations: set[tuple[str, ...]] = dataclasses.field(default_factory=set)
    attacks: set[tuple[str, ...]] = dataclasses.field(default_factory=set)
    _configs: dict[tuple[str, ...], Config] = dataclasses.field(default_factory=dict, repr=False)
    _curves: dict[tuple[str, ...], Any] = dataclasses.field(default_factory=dict, repr=False)
    _studies: dict[tuple[str, ...], Any] = dataclasses.field(default_factory=dict, repr=False)
    _attacks: dict[tuple[str, ...], Any] = dataclasses.field(default_factory=dict, repr=False)

    def diverged(self) -> bool:
        """Whether its training ended in a number that is not finite."""
        return (self.folder / "diverged.json").exists()

    def curves(self, under: tuple[str, ...] = ()) -> dict[str, Any] | None:
        """Its curves, under the overrides of another evaluation; None if they are missing."""
        if under not in self._curves:
            path = self.evaluation_folder(under) / "curves.json"
            try:
                found = read_curves(path, self.config.measures)
            except DamagedFileError:  # it is made again
                found = None
            config = self.evaluated(under)
            if found is None or not are_of(config, config.train.steps, found):
                return None
            self._curves[under] = found  # final: read once
        return self._curves[under]

    def study(self, under: tuple[str, ...]) -> dict[str, Any] | None:
        """What the study of an evaluation found, if it asks for one; None if it is missing."""
        if under not in self._studies:
            config = self.evaluated(under)
            try:
                found = read_study(config, config.train.steps, self.evaluation_folder(under))
            except DamagedFileError:  # it is made again
                found = None
            if found is None:
                return None
            self._studies[under] = found
        return self._studies[under]

    def evaluated(self, under: tuple[str, ...] = ()) -> Config:
        """The configuration of an evaluation."""
        if not under:
            return self.config
        if under not in self._configs:
            self._configs[under] = evaluation_config(self.config, list(under))
        return self._configs[under]

    def evaluation_folder(self, under: tuple[str, ...] = ()) -> Path:
        """Where an evaluation's curves lie."""
        return evaluation_folder(self.folder, list(under)) if under else self.folder

    def finished(self) -> bool:
        """Whether nothing is left to do."""
        if self.diverged():
            return True
        evaluated = all(map(self.is_evaluated, [(), *self.evaluations]))
        return evaluated and all(self.attack(options) is not None for options in self.attacks)

    def attack_folder(self, options: tuple[str, ...]) -> Path:
        """Where what an attack found lies."""
        digest = hashlib.sha256(repr(options).encode()).hexdigest()[:8]
        return self.folder / "attacks" / digest

    def attack(self, options: tuple[str, ...]) -> dict[str, Any] | None:
        """What an attack found: nothing ({}) of networks that have not learned; None if it is
        missing.
        """
        if options not in self._attacks:
            folder = self.attack_folder(options)
            if (folder / NOT_LEARNED).exists():
                return {}
            try:
                self._attacks[options] = read_attacks(folder / ATTACKS_FILE)
            except (DamagedFileError, FileNotFoundError):  # it is made again
                return None
        return self._attacks[options]

    def is_evaluated(self, under: tuple[str, ...]) -> bool:
        """Whether all that an evaluation leaves is there."""
        wants_study = is_studied(self.evaluated(under))
        there = self.curves(under) is not None
        return there and not (wants_study and self.study(under) is None)

    def training_loss(self) -> float:
        """Mean over seeds and the last tenth of the steps; infinite if it diverged."""
        return math.inf if self.diverged() else final_loss(self.folder)

    def share_done(self) -> float:
        """How far it is, in [0, 1], by its log."""
        if self.finished():
            return 1.0
        rows = read_rows(self.folder / "metrics.jsonl")
        steps = max((row["step"] for row in rows), default=0)
        return LARGEST_SHARE_BEFORE_EVALUATION * min(1.0, steps / self.config.train.steps)


@dataclasses.dataclass(frozen=True)
class Job:
    """Runs that train as one program in one process."""

    runs: tuple[Run, ...]
    file: Path

    def networks(self) -> int:
        """How many train at once."""
        return sum(run.config.num_seeds for run in self.runs)

    def work(self) -> int:
        """Its arithmetic, roughly, to weigh progress by: tokens x weights x steps x networks."""
        config = self.runs[0].config
        model, train = config.model, config.train
        hidden = (model.mlp_width or 4 * model.width) if model.mlp else 0
        weights = model.num_layers * model.width * (4 * model.width + 2 * hidden)
        tokens = world_of(config).num_tokens(config)
        return tokens * weights * train.batch_size * train.steps * self.networks()

    def write(self) -> None:
        """Leaves the job as a file, which `experiments.job` reads."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = [
            {
                "config": dataclasses.asdict(run.config),
                "folder": str(run.folder),
                "tags": sorted(run.tags),
                "evaluations": sorted(run.evaluations),
                "attacks": sorted(run.attacks),
            }
            for run in self.runs
        ]
        write_json(self.file, content)


def read(run: Run, reading: Reading | StudyReading) -> np.ndarray:
    """One number for each seed of a run; NaN where it diverged."""
    if isinstance(reading, StudyReading):
        return _read_study(run, reading)
    curves = None if run.diverged() else run.curves(reading.under)
    if curves is None:
        return np.full(run.config.num_seeds, math.nan)
    measures = run.config.measures
    curve = curves[measures.compared][reading.learner][reading.condition][reading.quantity]
    rows = curve.get("by_seed", [curve["mean"]])  # of one seed the mean is all there is
    return np.array(rows)[:, curves[measures.axis].index(reading.at)]


def _read_study(run: Run, reading: StudyReading) -> np.ndarray:
    nothing = np.full(run.config.num_seeds, math.nan)
    found: Any = None
    if not run.diverged():
        found = run.attack(reading.under) if reading.of_attack else run.study(reading.under)
    for key in reading.keys:
        if isinstance(found, list):
            found = {row["name"]: row for row in found}
        if found:
            found = found[key]
    if not found:  # such as the correlation of what does not vary
        return nothing
    values = np.array(found["by_seed"])
    if reading.at is None:
        return values
    at = reading.at if isinstance(reading.at, tuple) else (reading.at,)
    return values[:, *at]
