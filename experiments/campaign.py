"""A campaign: every run that some claims need, what is missing of them, and what they gave.

A run is recognised by its resolved configuration, wherever it lies under FOLDER/runs. Runs whose
configurations differ only in numbers that need no recompiling train together, as one job.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claim import Arm, Claim, Effect, Reading, Scale, StudyReading
from icl_align.config import (
    TRAINING,
    Config,
    WandbConfig,
    check,
    concerned,
    differences,
    leaves,
    program_key,
    setting,
)
from icl_align.running.compose import compose_config
from icl_align.running.curves_file import read_curves
from icl_align.running.evaluation import are_of
from icl_align.running.files import DamagedFileError, write_json
from icl_align.running.metrics_file import read_rows
from icl_align.running.reevaluation import evaluation_config, evaluation_folder
from icl_align.running.run_folder import saved_config
from icl_align.running.study import is_studied, read_study
from icl_align.running.sweeps import final_loss
from icl_align.world import world_of

LARGEST_SHARE_BEFORE_EVALUATION = 0.95


def identity(config: Config) -> str:
    """A digest of all options that training depends on."""
    trained = concerned(config, TRAINING)
    parts = [(key, value) for key, _, value in leaves(config) if key in trained]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


@dataclasses.dataclass
class Run:
    """One configuration of a campaign, with its folder and the other evaluations it needs."""

    config: Config
    folder: Path
    tags: set[str] = dataclasses.field(default_factory=set)
    evaluations: set[tuple[str, ...]] = dataclasses.field(default_factory=set)
    _configs: dict[tuple[str, ...], Config] = dataclasses.field(default_factory=dict, repr=False)
    _curves: dict[tuple[str, ...], Any] = dataclasses.field(default_factory=dict, repr=False)
    _studies: dict[tuple[str, ...], Any] = dataclasses.field(default_factory=dict, repr=False)

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
        return self.diverged() or all(map(self.is_evaluated, [(), *self.evaluations]))

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

    def work(self) -> float:
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
            }
            for run in self.runs
        ]
        write_json(self.file, content)


class Campaign:
    """The runs of some claims at one scale.

    Args:
      claims: name -> claim.
      scale: the sizes.
      folder: the campaign's folder.
      seed, num_seeds: the training seeds of every run.
      wandb: the W&B options of every run.

    Raises:
      ConfigError: an arm's overrides are not allowed.
    """

    def __init__(
        self,
        claims: dict[str, Claim],
        scale: Scale,
        folder: Path,
        seed: int,
        num_seeds: int,
        wandb: WandbConfig,
    ):
        self.claims, self.scale, self.folder = claims, scale, folder
        self._seeds, self._wandb = (f"seed={seed}", f"num_seeds={num_seeds}"), wandb
        self._overrides = f"world={scale.world}", *scale.base
        self.base = compose_config([*self._overrides, *self._seeds])
        self._known = self._folders_by_identity()
        self._runs: dict[tuple[Arm, float], Run] = {}
        self.runs: dict[str, Run] = {}  # by identity, in the order of the claims
        for name, claim in claims.items():
            for how, reading in claim.readings():
                for rate in self.rates(how, reading.arm):
                    run = self._run(reading.arm, rate)
                    run.tags |= {name, *_ablations(reading.arm)}
                    if reading.under:
                        run.evaluations.add(reading.under)

    def _folders_by_identity(self) -> dict[str, Path]:
        found = {}
        for path in sorted(self.folder.glob("runs/*/.hydra/config.yaml")):
            run_folder = path.parent.parent
            found[identity(saved_config(run_folder))] = run_folder
        return found

    def rates(self, how: str, arm: Arm) -> tuple[float, ...]:
        """The learning rates that a reading needs."""
        tuned = how == "controlled" and arm.tuned
        return self.scale.learning_rates if tuned else (self.scale.learning_rate,)

    def _run(self, arm: Arm, rate: float) -> Run:
        if (arm, rate) not in self._runs:
            overrides = [*self._overrides, *arm.overrides, f"train.learning_rate={rate}"]
            config = compose_config([*overrides, *self._seeds])
            config.evaluation.own_contexts = True
            config.wandb = dataclasses.replace(self._wandb)
            key = identity(check(config))
            if key not in self.runs:
                changed = differences(self.base, config)
                shown = {
                    k: v for k, (_, v) in changed.items() if not k.startswith(("wandb", "eval"))
                }
                name = ",".join(setting(k, v) for k, v in shown.items()) or "base"
                folder = self._known.get(key, self.folder / "runs" / f"{_safe(name)}_{key}")
                config.wandb.name = config.wandb.name or folder.name
                self.runs[key] = Run(config, folder)
            self._runs[arm, rate] = self.runs[key]
        return self._runs[arm, rate]

    def register(self, claims: dict[str, Claim]) -> None:
        """Writes down what is predicted, before the first run; later calls change nothing."""
        path = self.folder / "registered.json"
        if not path.exists():
            write_json(path, _predictions(claims))

    def changed_since_registered(self, claims: dict[str, Claim]) -> list[str]:
        """The claims whose judgements are not those that were written down."""
        path = self.folder / "registered.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        now = _predictions(claims)
        return [name for name in now if now[name] != before.get(name)]

    # --------------------------------------------------------------------------------- what to do

    def missing_jobs(self, networks_at_once: int) -> list[Job]:
        """What is left to train or to evaluate, grouped into jobs, in the order of the claims.

        Args:
          networks_at_once: most networks (configurations x seeds) in one job.
        """
        groups: dict[str, list[Run]] = {}
        for run in self.runs.values():
            if not run.finished():
                groups.setdefault(program_key(run.config), []).append(run)
        jobs = []
        for runs in groups.values():
            size = max(1, networks_at_once // runs[0].config.num_seeds)
            for first in range(0, len(runs), size):
                part = tuple(runs[first : first + size])
                digest = identity(part[0].config)
                jobs.append(Job(part, self.folder / "jobs" / f"job_{digest}.json"))
        return jobs

    # ------------------------------------------------------------------------------- what they gave

    def axis(self) -> list[int]:
        """The places of the world's axis, as the first finished run has them."""
        finished = (run.curves() for run in self.runs.values() if not run.diverged())
        curves = next((found for found in finished if found is not None), None)
        return [] if curves is None else curves[self.base.measures.axis]

    def chosen(self, how: str, arm: Arm) -> Run | None:
        """The run that a judgement reads of an arm: at the scale's own learning rate as published,
        at the one of the lowest training loss when controlled. None while one is missing.
        """
        runs = [self._runs[arm, rate] for rate in self.rates(how, arm)]
        if not all(run.finished() for run in runs):
            return None
        return min(runs, key=lambda run: run.training_loss())

    def training_losses(self, how: str, arm: Arm) -> dict[float, float]:
        """Learning rate -> training loss, of the runs that are compared to choose an arm's."""
        return {rate: self._runs[arm, rate].training_loss() for rate in self.rates(how, arm)}

    def learned(self, how: str, effect: Effect) -> bool:
        """Whether a comparison can show anything, as `Scale.learned` says; True for what compares
        no arms.
        """
        wanted = self.scale.learned
        if wanted is None or len(effect.terms) == 1:
            return True
        trained = self.base.measures.trained
        axis = self.axis()
        usual = axis[self.base.measures.judged_place(axis)] if axis else 0
        readings = {
            Reading(
                r.arm,
                wanted.quantity,
                trained,
                wanted.condition,
                r.at if isinstance(r, Reading) else usual,
            )
            for _, r in effect.terms
        }
        found = [self.values(how, Effect(((1, reading),))) for reading in readings]
        return any(values is not None and np.mean(values) > wanted.above for values in found)

    def values(self, how: str, effect: Effect) -> np.ndarray | None:
        """An effect, one value a seed: NaN where a run diverged, None where one is missing."""
        total: Any = 0.0
        for sign, reading in effect.terms:
            run = self.chosen(how, reading.arm)
            if run is None:
                return None
            total = total + sign * _read(run, reading)
        return total


def _read(run: Run, reading: Reading | StudyReading) -> np.ndarray:
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
    found: Any = None if run.diverged() else run.study(reading.under)
    for key in reading.keys:
        if isinstance(found, list):
            found = {row["name"]: row for row in found}
        if found is not None:
            found = found[key]
    if found is None:  # such as the correlation of what does not vary
        return nothing
    values = np.array(found["by_seed"])
    return values if reading.at is None else values[:, reading.at]


def _predictions(claims: dict[str, Claim]) -> dict[str, list[str]]:
    return {name: [repr(judgement) for judgement in c.judgements] for name, c in claims.items()}


def _ablations(arm: Arm) -> Iterable[str]:
    return (text.partition("=")[2] for text in arm.overrides if text.startswith("+ablation="))


def _safe(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.=,+-]", "_", name)[:100]
