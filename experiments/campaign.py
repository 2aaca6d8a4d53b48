"""A campaign: every run that some claims need, what is missing of them, and what they gave.

It has two stages, with seeds of their own. In the pilot every tuned arm is trained over a grid of
learning rates, which grows until no arm's best rate lies at its edge; the spread of the pilot's
values says how many seeds a judgement takes. Then what is predicted is written down, and every arm
is trained at its rate with the seeds that are judged. A run is recognised by its resolved
configuration, wherever it lies under FOLDER/runs.
"""

import copy
import dataclasses
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claim import Arm, Claim, Effect, Judgement, Reading, Scale, StudyReading
from experiments.judge import EXPLORATORY_LEVEL, PRIMARY_LEVEL, Family
from experiments.power import NUMBERS, needed_seeds
from experiments.runs import CONFIG, Job, Run, identity, read, trained_differently
from icl_align.config import Config, WandbConfig, check, program_key
from icl_align.running.compose import compose_config
from icl_align.running.run_folder import saved_config

PILOT, JUDGED = "pilot", "judged"
Families = dict[bool, Family]


def families(every: Iterable[Claim]) -> Families:
    """The primary judgements of all claims there are (True), and the exploratory ones (False)."""
    primary = [judgement.primary for claim in every for judgement in claim.judgements]
    return {
        True: Family(PRIMARY_LEVEL, sum(primary)),
        False: Family(EXPLORATORY_LEVEL, len(primary) - sum(primary)),
    }


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a campaign a run belongs."""

    arm: Arm
    rate: float
    stage: str


@functools.cache  # to compose takes a second, and the pilot, the runs and the report ask for it
def _composed(overrides: tuple[str, ...]) -> Config:
    return compose_config([*overrides])


@functools.cache
def _saved_identity(run_folder: Path, changed: int) -> str:
    """Of the run that a folder holds, whose configuration was `changed` at that time."""
    return identity(saved_config(run_folder))


class Campaign:
    """The runs of some claims of one world at one scale.

    Args:
      claims: name -> claim.
      scale: the sizes.
      folder: the campaign's folder.
      wandb: the W&B options of every run.
      families: of all judgements there are.
      registered: name -> what was written down of a claim.

    Raises:
      ConfigError: an arm's overrides are not allowed.
    """

    def __init__(
        self,
        claims: dict[str, Claim],
        scale: Scale,
        folder: Path,
        wandb: WandbConfig,
        families: Families,
        registered: dict[str, Any],
    ):
        self.claims, self.scale, self.folder, self._wandb = claims, scale, folder, wandb
        self.families, self.registered = families, registered
        self.overrides = f"world={scale.world}", *scale.base, f"train.steps={scale.steps}"
        self.base = copy.deepcopy(_composed(self.overrides))
        self.base.seed, self.base.num_seeds = scale.seeds.first, scale.seeds.judged
        self._known = self._folders_by_identity()
        self._configs: dict[tuple[Place, int], Config] = {}
        self.places: dict[Place, Run] = {}
        self.runs: dict[str, Run] = {}  # by identity, in the order of the claims
        self.grid = scale.learning_rates
        self._add_pilot()
        for _ in range(scale.most_extensions if scale.seeds.pilot else 0):
            edges = self._edges()
            if not edges:
                break
            self.grid = tuple(sorted({*self.grid, *edges}))
            self._add_pilot()
        self._ask_of_pilot()
        self.is_piloted = self._is_finished()
        if self.is_piloted:
            self._add_judged()

    def _is_finished(self) -> bool:
        return all(run.finished() for run in self.runs.values())

    def _folders_by_identity(self) -> dict[str, Path]:
        found = {}
        for path in sorted(self.folder.glob(f"runs/*/{CONFIG}")):
            run_folder = path.parent.parent
            found[_saved_identity(run_folder, path.stat().st_mtime_ns)] = run_folder
        return found

    def _first_seed(self, stage: str) -> int:
        return self.scale.seeds.first_pilot if stage == PILOT else self.scale.seeds.first

    # ------------------------------------------------------------------------------------ the runs

    def rates(self, how: str, arm: Arm) -> tuple[float, ...]:
        """The learning rates that the pilot of a reading needs."""
        tuned = how == "controlled" and arm.tuned
        return self.grid if tuned else (self.scale.learning_rate,)

    def _add_pilot(self) -> None:
        if not self.scale.seeds.pilot:
            return
        for name, claim in self.claims.items():
            for how, reading in claim.readings():
                for rate in self.rates(how, reading.arm):
                    self._add(name, Place(reading.arm, rate, PILOT), self.scale.seeds.pilot)

    def _ask_of_pilot(self) -> None:
        """Studies, attacks and other evaluations, at the chosen rates only."""
        if self.scale.seeds.pilot and self._is_finished():
            for claim in self.claims.values():
                for how, reading in claim.readings():
                    place = Place(reading.arm, self.chosen_rate(how, reading.arm), PILOT)
                    _ask(self.places[place], reading)

    def _edges(self) -> set[float]:
        """The rates beyond the grid that an arm's best one at its edge asks for."""
        wanted = set()
        for how, arm in self._arms():
            losses = self.training_losses(how, arm)
            if len(losses) > 1 and all(
                self.places[Place(arm, r, PILOT)].finished() for r in losses
            ):
                best = min(losses, key=losses.get)
                wanted |= {best / 2} if best == min(losses) else set()
                wanted |= {best * 2} if best == max(losses) else set()
        return wanted

    def _arms(self) -> list[tuple[str, Arm]]:
        readings = [pair for claim in self.claims.values() for pair in claim.readings()]
        return list(dict.fromkeys((how, reading.arm) for how, reading in readings))

    def _add_judged(self) -> None:
        number: dict[str, int] = {}  # by identity, as of one seed
        for name, claim in self.claims.items():
            for judgement in claim.judgements:
                wanted = self._wanted_seeds(name, judgement)
                for _, reading in judgement.effect.terms:
                    key = identity(self._config(self.judged_place(judgement.how, reading.arm), 1))
                    number[key] = max(number.get(key, 0), wanted)
        for name, claim in self.claims.items():
            for how, reading in claim.readings():
                place = self.judged_place(how, reading.arm)
                wanted = number.get(identity(self._config(place, 1)), self.scale.seeds.judged)
                _ask(self._add(name, place, wanted), reading)
            for _, overrides in claim.moved_by if self.scale.seeds.pilot else ():
                for judgement in claim.judgements:
                    if judgement.primary:
                        for _, reading in judgement.effect.terms:
                            place = self._moved_place(judgement.how, reading.arm, overrides)
                            _ask(self._add(name, place, self.scale.seeds.pilot), reading)

    def _wanted_seeds(self, name: str, judgement: Judgement) -> int:
        """How many seeds decide a judgement, within what the scale affords; once registered, as
        many as then.
        """
        least, most = self.scale.seeds.judged, self.scale.seeds.most
        if not judgement.primary or least == most:
            return least
        held = self.registered_as(name, judgement)
        spread = held["spread"] if held else self.spread(judgement)
        if spread is None:
            return least
        if held:
            needed = held["needed_seeds"]
        else:
            needed = needed_seeds(spread, judgement.predicted, self.families[True])
        return min(most, max(least, needed or max(NUMBERS)))

    def judged_place(self, how: str, arm: Arm) -> Place:
        """Where the run is that a judgement reads of an arm."""
        return Place(arm, self.chosen_rate(how, arm), JUDGED)

    def _moved_place(self, how: str, arm: Arm, overrides: tuple[str, ...]) -> Place:
        """Of an arm under other options, at the rate that was best without them."""
        moved = Arm((*arm.overrides, *overrides), arm.tuned)
        return Place(moved, self.chosen_rate(how, arm), PILOT)

    def chosen_rate(self, how: str, arm: Arm) -> float:
        """The rate of a tuned arm with the lowest training loss in the pilot, of others the
        scale's.
        """
        if not self.scale.seeds.pilot:
            return self.scale.learning_rate
        losses = self.training_losses(how, arm)
        return min(losses, key=losses.get)

    def training_losses(self, how: str, arm: Arm) -> dict[float, float]:
        """Learning rate -> training loss in the pilot, of those that an arm's is chosen from."""
        return {
            rate: self.places[Place(arm, rate, PILOT)].training_loss()
            for rate in self.rates(how, arm)
        }

    def _config(self, place: Place, number: int) -> Config:
        key = (place, number)
        if key not in self._configs:
            rate = f"train.learning_rate={place.rate}"
            config = copy.deepcopy(_composed((*self.overrides, *place.arm.overrides, rate)))
            config.seed, config.num_seeds = self._first_seed(place.stage), number
            config.evaluation.own_contexts = True
            config.wandb = dataclasses.replace(self._wandb)
            self._configs[key] = check(config)
        return self._configs[key]

    def _add(self, name: str, place: Place, number: int) -> Run:
        if place not in self.places:
            config = self._config(place, number)
            key = identity(config)
            if key not in self.runs:
                words = [place.stage, *trained_differently(self.base, config)]
                folder = self.folder / "runs" / f"{_safe(','.join(words))}_{key}"
                folder = self._known.get(key, folder)
                config.wandb.name = config.wandb.name or folder.name
                self.runs[key] = Run(config, folder)
            self.places[place] = self.runs[key]
        run = self.places[place]
        run.tags |= {name, *_ablations(place.arm)}
        return run

    # --------------------------------------------------------------------------------- what to do

    def missing_jobs(self, networks_at_once: int, names: Iterable[str] | None = None) -> list[Job]:
        """What is left to train or to evaluate, grouped into jobs, in the order of the claims.

        Args:
          networks_at_once: most networks (configurations x seeds) in one job.
          names: claims of which only what is judged is asked for; None is all. The pilot is that of
            all claims, which share their grid.
        """
        groups: dict[str, list[Run]] = {}
        for run in self.runs.values():
            asked = names is None or not self.is_piloted or run.tags & set(names)
            if asked and not run.finished():
                groups.setdefault(program_key(run.config), []).append(run)
        jobs = []
        for runs in groups.values():
            size = max(1, networks_at_once // runs[0].config.num_seeds)
            for first in range(0, len(runs), size):
                part = tuple(runs[first : first + size])
                digest = identity(part[0].config)
                jobs.append(Job(part, self.folder / "jobs" / f"job_{digest}.json"))
        return jobs

    def registered_as(self, name: str, judgement: Judgement) -> dict[str, Any]:
        """What was written down of a judgement; nothing if it was not, or is another one now."""
        return registered_judgement(self.registered, name, judgement)

    def spread(self, judgement: Judgement) -> float | None:
        """The pilot's standard deviation over seeds of an effect; None where there is none."""
        if not self.scale.seeds.pilot:
            return None
        values = self.values(judgement.how, judgement.effect, PILOT)
        if values is None or len(values) < 2 or not np.all(np.isfinite(values)):
            return None
        return float(np.std(values, ddof=1)) or None

    # ------------------------------------------------------------------------------- what they gave

    def axis(self) -> list[int]:
        """The places of the world's axis, as the first finished run has them."""
        finished = (run.curves() for run in self.runs.values() if not run.diverged())
        curves = next((found for found in finished if found is not None), None)
        return [] if curves is None else curves[self.base.measures.axis]

    def run_of(self, how: str, arm: Arm, stage: str = JUDGED) -> Run | None:
        """The run that a judgement reads of an arm; None while it is missing."""
        if stage == JUDGED and not self.is_piloted:
            return None
        run = self.places[Place(arm, self.chosen_rate(how, arm), stage)]
        return run if run.finished() else None

    def learned(self, judgement: Judgement, seeds: int | None = None) -> bool:
        """Whether a judgement can show anything: whether one of its arms has learned, as
        `Scale.learned` says, by its first seeds or all. An attack says itself whether it can.
        """
        wanted, how, terms = self.scale.learned, judgement.how, judgement.effect.terms
        if wanted is None or judgement.of_untrained:
            return True
        if any(isinstance(r, StudyReading) and r.of_attack for _, r in terms):
            return True
        trained, axis = self.base.measures.trained, self.axis()
        usual = axis[self.base.measures.judged_place(axis)] if axis else 0
        found = []
        for reading in dict.fromkeys(r for _, r in terms):
            read = reading.at if isinstance(reading, Reading) else usual
            at = read if wanted.at is None else wanted.at
            signs = [(1, wanted.condition)] + [(-1, wanted.beyond)] * (wanted.beyond is not None)
            effect = Effect(
                tuple(
                    (sign, Reading(reading.arm, wanted.quantity, trained, condition, at))
                    for sign, condition in signs
                )
            )
            found.append(self.values(how, effect))
        return any(
            values is not None and wanted.wanted.holds(float(np.mean(values[:seeds])))
            for values in found
        )

    def values(self, how: str, effect: Effect, stage: str = JUDGED) -> np.ndarray | None:
        """An effect, one value a seed: NaN where a run diverged, None where one is missing."""
        runs = [self.run_of(how, reading.arm, stage) for _, reading in effect.terms]
        return _summed(effect, runs)

    def values_at(self, effect: Effect, rate: float) -> np.ndarray | None:
        """An effect in the pilot, all arms at one learning rate."""
        runs = [self.places.get(Place(r.arm, rate, PILOT)) for _, r in effect.terms]
        return _summed(effect, runs)

    def values_moved(
        self, how: str, effect: Effect, overrides: tuple[str, ...]
    ) -> np.ndarray | None:
        """An effect with the pilot's seeds, all arms under other options."""
        if not self.is_piloted:
            return None
        places = [self._moved_place(how, r.arm, overrides) for _, r in effect.terms]
        return _summed(effect, [self.places.get(place) for place in places])


def _summed(effect: Effect, runs: list[Run | None]) -> np.ndarray | None:
    if any(run is None or not run.finished() for run in runs):
        return None
    found = [sign * read(run, r) for run, (sign, r) in zip(runs, effect.terms, strict=True)]
    shared = min(map(len, found))  # the first seeds are the same
    return np.sum([values[:shared] for values in found], axis=0)


def registered_judgement(
    registered: dict[str, Any], name: str, judgement: Judgement
) -> dict[str, Any]:
    """What was written down of a judgement; nothing if it was not, or is another one now."""
    rows = registered.get(name, {"judgements": ()})["judgements"]
    said = judgement.how, judgement.prediction
    return next((row for row in rows if (row.get("how"), row["prediction"]) == said), {})


def _ask(run: Run, reading: Reading | StudyReading) -> None:
    """What a run needs beside its curves for a reading."""
    if isinstance(reading, StudyReading) and reading.of_attack:
        run.attacks.add(reading.under)
    elif reading.under:
        run.evaluations.add(reading.under)


def _ablations(arm: Arm) -> Iterable[str]:
    return (text.partition("=")[2] for text in arm.overrides if text.startswith("+ablation="))


def _safe(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.=,+-]", "_", name)[:100]
