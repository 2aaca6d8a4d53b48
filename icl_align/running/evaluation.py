"""Curves: learners x conditions x quantities against the world's axis, with 95% intervals."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from icl_align.config import EVALUATION, Config, concerned, leaves, sections
from icl_align.running.kept import Kept
from icl_align.running.measuring import Measuring
from icl_align.running.training import TrainState
from icl_align.statistics import Moments, mean_interval, merge, moments, pooled_moments
from icl_align.world import Measures, Untrained

BLOCK = 1024  # what needs no training is kept in files of so many contexts

Progress = Callable[[float], None]


@runtime_checkable
class Measurer(Protocol):
    """What measures: a `Measuring` on the devices of this process, or a `Crew` on all of them."""

    num_samples: int

    def fitting_size(self, program: str) -> int:
        """As `Measuring.fitting_size`."""

    def halve(self, program: str) -> bool:
        """As `Measuring.halve`."""

    def shapes(self, size: int) -> Untrained:
        """As `Measuring.shapes`."""

    def fingerprint(self, condition: str, sample: int) -> str:
        """As `Measuring.fingerprint`."""

    def untrained(self, condition: str, sample: int, first: int, size: int) -> Untrained:
        """As `Measuring.untrained`."""

    def trained(
        self, condition: str, sample: int, first: int, size: int, needed: Any
    ) -> dict[str, Any]:
        """As `Measuring.trained`."""


def compute_curves(
    config: Config,
    state: TrainState,
    progress: Progress = lambda fraction: None,
    kept: Kept | None = None,
) -> dict[str, Any]:
    """Curves of every learner under every condition, as `curves.json` holds them.

    The contexts are divided among the devices of this process and cut into batches of at most
    `evaluation.batch_size`, fewer if they do not fit in memory; the numbers do not depend on that
    beyond rounding.

    Args:
      config: options; those of the evaluation say what is evaluated.
      state: training state of all seeds, leading axis s.
      progress: called with the share that is done, in [0, 1].
      kept: where the numbers of learners that need no training are found, and left.

    Returns:
      `{AXIS: [...], "learners": {NAME: {CONDITION: {QUANTITY: {"mean", "low", "high"}}}}, ...}`;
      the trained learner's quantities also hold "by_seed", one list for each of "seeds", and so do
      those of all learners if every seed has contexts of its own.
    """
    measuring = Measuring(config, by_configuration([config], state.params))
    step = int(np.asarray(state.step)[0])
    return compute_curves_together([config], step, measuring, progress, kept)[0]


def evaluated_alike(configs: list[Config]) -> list[list[int]]:
    """Places of configurations whose evaluations can share what needs no training.

    Traced numbers, which one training program can have several of, may be part of the world that
    is evaluated.
    """
    found: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        of_evaluation = concerned(config, EVALUATION)
        parts = [(key, value) for key, _, value in leaves(config) if key in of_evaluation]
        found.setdefault(repr(parts), []).append(place)
    return list(found.values())


def by_configuration(configs: list[Config], params: Any) -> Any:
    """Parameters [c, s, ...] on the host, from those of all members."""
    shape = len(configs), configs[0].num_seeds
    return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(*shape, *leaf.shape[1:]), params)


def compute_curves_together(
    configs: list[Config],
    step: int,
    measurer: Measurer,
    progress: Progress = lambda fraction: None,
    kept: Kept | None = None,
) -> list[dict[str, Any]]:
    """`compute_curves` of several configurations, whose untrained learners are run only once.

    Args:
      configs: equal but for traced numbers that the evaluation does not depend on.
      step: that training has reached.
      measurer: of all of them.
      progress, kept: as in `compute_curves`.

    Raises:
      ValueError: their evaluations differ.
    """
    if len(evaluated_alike(configs)) > 1:
        raise ValueError("these configurations are not evaluated alike")
    config, measures = configs[0], configs[0].measures
    total, conditions = config.evaluation.num_contexts, measures.conditions(config.evaluation)
    reader = _Reader(measurer, measures, total, kept or Kept(None))
    found = [
        {
            measures.axis: [],
            measures.compared: {name: {} for name in measures.learners},
            "step": step,
            "seeds": [config.seed + index for index in range(config.num_seeds)],
            "num_contexts": total,
            "confidence": 0.95,
            "options": evaluated_options(one),
        }
        | {flag: {} for flag in measures.flags}
        for one in configs
    ]
    work, before = total * len(conditions) * measurer.num_samples, 0
    for condition in conditions:
        samples = [_Sums(measures) for _ in range(measurer.num_samples)]
        for number, sums in enumerate(samples):
            for done in reader.read(condition, number, sums):
                progress((before + done) / work)
            before += total
        for place, curves in enumerate(found):
            _add_condition(curves, measures, condition, place, samples)
    return found


def _add_condition(
    curves: dict[str, Any], measures: Measures, condition: str, place: int, samples: list["_Sums"]
) -> None:
    """Puts the numbers of configuration `place` under one condition into its curves."""
    for flag in measures.flags:
        count = sum(sums.flags[flag] for sums in samples)
        curves[flag][condition] = count / (curves["num_contexts"] * len(samples))
    for name in measures.learners:
        is_trained = name == measures.trained
        by_seed = is_trained or len(samples) > 1
        of_learner = curves[measures.compared][name][condition] = {}
        for quantity in measures.quantities:
            key = name, quantity, place if is_trained else 0
            parts = [sums.of(key) for sums in samples]
            of_learner[quantity] = _interval(parts, by_seed)
            curves[measures.axis] = list(range(parts[0].seed_means.shape[-1]))


def evaluated_options(config: Config) -> dict[str, Any]:
    """The options that an evaluation depends on, as nested dicts."""
    return {
        name: dataclasses.asdict(getattr(config, name)) for name in sections(config, EVALUATION)
    }


def are_of(config: Config, step: int, curves: dict[str, Any]) -> bool:
    """Whether curves are of a training's state at `step`, with these options of the evaluation."""
    there, own = curves["options"], evaluated_options(config)
    return curves["step"] == step and _of_curves(config, there) == _of_curves(config, own)


def _of_curves(config: Config, options: dict[str, Any]) -> dict[str, Any]:
    """Those of some evaluated options that curves depend on: dotted key -> value."""
    flat = {f"{name}.{key}": value for name, part in options.items() for key, value in part.items()}
    studied = config.measures.studied
    return {key: value for key, value in flat.items() if not key.startswith(studied)}


class _Sums:
    """What the batches of one sample of contexts add up to.

    A key is (learner, quantity, configuration); the last is 0 for a learner without training.

    Args:
      measures: the names of what is measured.

    Attributes:
      flags: how many contexts have each.
    """

    def __init__(self, measures: Measures) -> None:
        self._quantities = measures.quantities
        self._moments: dict[tuple[str, str, int], Moments] = {}
        self._pooled: dict[tuple[str, str, int], list[Float[np.ndarray, "b s *x m"]]] = {}
        self.flags: Counter[str] = Counter()

    def add(self, key: tuple[str, str, int], values: Float[np.ndarray, "b s *x"]) -> None:
        """Adds the values of a batch."""
        if self._quantities[key[1]].pool is not None:
            self._pooled.setdefault(key, []).append(np.asarray(values))
            return
        new, old = moments(values), self._moments.get(key)
        self._moments[key] = new if old is None else merge(old, new)

    def of(self, key: tuple[str, str, int]) -> Moments:
        """The moments of all that was added."""
        pool = self._quantities[key[1]].pool
        if pool is None:
            return self._moments[key]
        return pooled_moments(np.concatenate(self._pooled[key]), pool)


class _Reader:
    """Goes through samples of contexts in blocks, and through blocks in batches that fit."""

    def __init__(self, measurer: Measurer, measures: Measures, total: int, kept: Kept):
        self._measurer, self._measures, self._total, self._kept = measurer, measures, total, kept

    def read(self, condition: str, sample: int, sums: _Sums) -> Iterator[float]:
        """Adds a sample's values under a condition to `sums`; yields the contexts done so far."""
        about = self._measurer.fingerprint(condition, sample)
        for first in range(0, self._total, BLOCK):
            count = min(BLOCK, self._total - first)
            depends_on = f"{about} {first} {count}"
            untrained = self._kept.load(depends_on, self._measurer.shapes(count))
            if untrained is None:
                parts = []
                for start, part in self._untrained(condition, sample, first, count):
                    parts.append(part)
                    yield (start + first) / 2
                untrained = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
                self._kept.store(depends_on, untrained)
            for flag, holds in untrained.flags.items():
                sums.flags[flag] += int(np.sum(holds))
            for name, quantities in untrained.quantities.items():
                for quantity, values in quantities.items():
                    sums.add((name, quantity, 0), values[:, None])
            for start, part in self._trained(condition, sample, first, count, untrained.needed):
                for quantity, values in part.items():
                    for place in range(values.shape[1]):
                        sums.add((self._measures.trained, quantity, place), values[:, place])
                yield (first + count + start) / 2
            yield float(first + count)

    def _untrained(
        self, condition: str, sample: int, first: int, count: int
    ) -> Iterator[tuple[int, Untrained]]:
        def measure(start, size):
            return self._measurer.untrained(condition, sample, start, size)

        return self._batches("untrained", first, count, measure)

    def _trained(
        self, condition: str, sample: int, first: int, count: int, needed: Any
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        def measure(start, size):
            def own(leaf):
                part = leaf[start - first : start - first + size]
                return np.pad(part, [(0, size - len(part))] + [(0, 0)] * (leaf.ndim - 1))

            return self._measurer.trained(condition, sample, start, size, jax.tree.map(own, needed))

        return self._batches("trained", first, count, measure)

    def _batches(
        self, program: str, first: int, count: int, measure: Callable[[int, int], Any]
    ) -> Iterator[tuple[int, Any]]:
        """(first context, values) of batches that fit in memory."""
        start, end = first, first + count
        while start < end:
            size = self._measurer.fitting_size(program)
            try:
                values = measure(start, size)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or not self._measurer.halve(program):
                    raise
                continue
            wanted = min(size, end - start)  # a batch has one length, whatever is left
            yield start, jax.tree.map(lambda leaf, n=wanted: leaf[:n], values)
            start += wanted


def _interval(samples: list[Moments], by_seed: bool) -> dict[str, Any]:
    """A curve from the samples of contexts: one of all seeds, or one of each seed."""
    of_all = samples[0]
    if len(samples) > 1:  # contexts nested in seeds: the seeds' spread holds both
        means = np.concatenate([sample.seed_means for sample in samples])
        of_all = Moments(of_all.count, means, np.zeros_like(of_all.context_squares))
    mean, low, high = mean_interval(of_all)
    curve = {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
    return curve | ({"by_seed": of_all.seed_means.tolist()} if by_seed else {})
