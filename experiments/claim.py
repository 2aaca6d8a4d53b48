"""What a claim is: arms to train, effects to read off them, and where each effect must lie.

    one, four = Arm("model.num_heads=1"), Arm()
    Judgement("controlled", "one head ranks worse", regret(one) - regret(four), above(0.04))

An effect is a sum of readings of trained runs, each one number a seed. Arms share their seeds, so a
difference is paired. Nothing here trains or reads a file.
"""

import dataclasses
import importlib
import math

HOW = ("published", "controlled")
PAPERS = {
    "wang2024": "Wang, Wu, Wei, Jegelka, Wang: A Theoretical Understanding of Self-Correction "
    "through In-context Alignment (NeurIPS 2024, arXiv 2405.18634)",
    "liu2025": "Liu, Mao, Cao, Xue, Zhang, Wang, Johnson: On the Convergence of Moral "
    "Self-Correction in Large Language Models (IJCNLP-AACL 2025, arXiv 2510.07290)",
}


@dataclasses.dataclass(frozen=True)
class Learned:
    """When the runs of an effect have learned enough for it to show anything.

    Attributes:
      quantity: of the trained learner, at the place that is read.
      condition: under which.
      wanted: where its mean over the seeds must lie in one of the runs.
      words: the same for the report.
      beyond: the condition from which the quantity is measured; None measures it from 0.
      at: a place on the axis; None is the one that is read.
    """

    quantity: str
    condition: str
    wanted: "Range"
    words: str
    # Said by the words: what is not asked for does not change what was registered before.
    beyond: str | None = dataclasses.field(default=None, repr=False)
    at: int | None = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Seeds:
    """How many networks of every arm are trained.

    Attributes:
      judged: of every arm, at least.
      most: of the arms of a primary judgement whose pilot asks for more.
      pilot: for the choice of a learning rate and the power analysis; with 0 there is no pilot, and
        every arm takes the scale's rate.
      first, first_pilot: the first seed of those that are judged, and of the pilot's.
    """

    judged: int
    most: int
    pilot: int
    first: int = 100
    first_pilot: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """The size at which all claims of a world are run; a world may add sizes of its own.

    Attributes:
      world: whose claims they are.
      base: overrides of every run of the campaign.
      steps: of training.
      learning_rates: the grid over which every tuned arm is trained in the pilot.
      learning_rate: the one of the grid that untuned arms take, as the published study took one.
      learned: when an effect shows anything; None if always.
      seeds: how many of every arm.
      most_extensions: how often the grid grows where an arm's best rate lies at its edge.
      judges: whether runs of this size can say anything of a claim; if not, nothing is judged.
      jobs_at_once: side by side on one machine; several where a job is short, and so compiles more
        than it computes.
      ignores: options, or overrides, that arms and evaluations leave as the base has them. What
        differs in sizes alone runs the same code, and where nothing is judged that is enough.
    """

    world: str
    base: tuple[str, ...]
    steps: int
    learning_rates: tuple[float, ...]
    learning_rate: float
    learned: Learned | None
    seeds: Seeds
    most_extensions: int = 4
    judges: bool = True
    jobs_at_once: int = 1
    ignores: tuple[str, ...] = ()

    def recipes(self, steps: int | None = None) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Name -> overrides, under which the effect of a part of the architecture is shown too.

        Args:
          steps: that the arms train; None is the scale's.
        """
        steps = self.steps if steps is None else steps
        return (
            ("model.init=torch", ("model.init=torch",)),
            ("half as many steps", (f"train.steps={steps // 2}",)),
            ("twice as many", (f"train.steps={steps * 2}",)),
        )


@dataclasses.dataclass(frozen=True)
class Arm:
    """One configuration: the scale's base with these overrides, trained with every seed.

    Args:
      overrides: as on the command line of `icl_align.train`.
      tuned: trained at every learning rate of the grid, not only at the scale's own.
    """

    overrides: tuple[str, ...] = ()
    tuned: bool = True

    def __str__(self) -> str:
        return " ".join(self.overrides) or "base"


@dataclasses.dataclass(frozen=True)
class Reading:
    """One number a seed: a quantity of a learner on the evaluation contexts of an arm.

    Args:
      arm: which run.
      quantity, learner, condition: keys of curves.json.
      at: the place on the world's axis, such as the number of attempts.
      under: overrides of another evaluation of the same run, as for `icl_align.evaluate`.
    """

    arm: Arm
    quantity: str
    learner: str
    condition: str
    at: int
    under: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [self.quantity, self.learner, self.condition, str(self.at), *self.under]
        return f"{' '.join(words)} of {self.arm}"


@dataclasses.dataclass(frozen=True)
class StudyReading:
    """One number a seed, out of what a study of the networks of an arm leaves, or an attack.

    Args:
      arm: which run.
      keys: where it stands in the study's file: a name for each level, of lists the "name" of a
        row; there is its "by_seed".
      at: the place in the list that each seed has there, or in nested ones; None if it has a
        number.
      under: overrides of the evaluation that asks for the study, or options of the attack.
      of_attack: whether it stands in what `icl_align.attack` leaves.
      label: what it is, with its unit, as a figure says it.
    """

    arm: Arm
    keys: tuple[str, ...]
    at: int | tuple[int, ...] | None
    under: tuple[str, ...]
    of_attack: bool = False
    # How it is called says nothing of what is predicted.
    label: str = dataclasses.field(default="", repr=False, compare=False)

    def __str__(self) -> str:
        at = [] if self.at is None else [str(self.at)]
        return f"{' '.join([*self.keys, *at, *self.under])} of {self.arm}"


@dataclasses.dataclass(frozen=True)
class Effect:
    """A sum of signed readings; built with + and -, from the functions of its world."""

    terms: tuple[tuple[int, Reading | StudyReading], ...]

    def __add__(self, other: "Effect") -> "Effect":
        return Effect(self.terms + other.terms)

    def __sub__(self, other: "Effect") -> "Effect":
        return Effect(self.terms + tuple((-sign, reading) for sign, reading in other.terms))

    def __str__(self) -> str:
        return " ".join(f"{'+' if sign > 0 else '-'} [{r}]" for sign, r in self.terms)

    def without(self, ignores: tuple[str, ...]) -> "Effect":
        """The same effect without the overrides that `Scale.ignores` names."""

        def kept(overrides):
            return tuple(
                one for one in overrides if not {one, one.partition("=")[0]} & set(ignores)
            )

        def of(reading):
            arm = dataclasses.replace(reading.arm, overrides=kept(reading.arm.overrides))
            return dataclasses.replace(reading, arm=arm, under=kept(reading.under))

        return Effect(tuple((sign, of(reading)) for sign, reading in self.terms))

    def moved_to(self, at: int) -> "Effect":
        """The same effect at another place of the axis, for a curve."""
        return Effect(tuple((sign, dataclasses.replace(r, at=at)) for sign, r in self.terms))


@dataclasses.dataclass(frozen=True)
class Range:
    """The open interval in which a predicted effect lies.

    Attributes:
      low, high: its ends.
      resolution: how far from an end an effect has to be told from it; the smallest that counts.
    """

    low: float = -math.inf
    high: float = math.inf
    resolution: float = math.nan

    @property
    def has_two_ends(self) -> bool:
        """Whether it is bounded on both sides."""
        return self.low > -math.inf and self.high < math.inf

    def holds(self, value: float) -> bool:
        """Whether a value lies inside."""
        return self.low < value < self.high

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"below {self.high:g}"
        if self.high == math.inf:
            return f"above {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


def above(low: float, resolution: float | None = None) -> Range:
    """Larger than `low`, which is also the resolution if there is no other."""
    return Range(low=low, resolution=abs(low) if resolution is None else resolution)


def below(high: float, resolution: float | None = None) -> Range:
    """Smaller than `high`, which is also the resolution if there is no other."""
    return Range(high=high, resolution=abs(high) if resolution is None else resolution)


def within(size: float) -> Range:
    """No further than `size` from 0: an effect too small to count."""
    return Range(-size, size, resolution=size)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """One prediction of a claim, judged by one number.

    Args:
      how: "published" reads every arm at the scale's one learning rate, with the paper's
        quantity and confounds; "controlled" changes one thing, and reads a tuned arm at the rate
        of its lowest training loss. A comparison has tuned arms only, or none.
      prediction: in words, as the claim's authors would have it.
      effect: what is read.
      predicted: where it must lie.
      primary: whether it is the one judgement that stands for its claim.
      of_untrained: whether it is judged of networks that have not learned too, or of none; of
        others one at least must have learned.
    """

    how: str
    prediction: str
    effect: Effect
    predicted: Range
    primary: bool = False
    of_untrained: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim: its sentence, its source, its predictions and its figure.

    Args:
      sentence: the claim.
      place: where it is made.
      judgements: what is judged, and how; they name the arms.
      figure: label -> the effect that is drawn against the axis; none of studies, whose axes
        are others.
      moved_by: name -> overrides of all arms of the primary judgement, under which its effect is
        shown too.
      course: label -> the effect whose course along the axis the report says in numbers: first,
        last, and where it settles.
      paper: the one of PAPERS whose folder it lies in; `load_claim` knows.
    """

    sentence: str
    place: str
    judgements: tuple[Judgement, ...]
    figure: dict[str, Effect]
    moved_by: tuple[tuple[str, tuple[str, ...]], ...] = ()
    course: dict[str, Effect] = dataclasses.field(default_factory=dict)
    paper: str = ""

    def __post_init__(self) -> None:
        for judgement in self.judgements:
            if judgement.how not in HOW:
                raise ValueError(f"how={judgement.how}: must be one of {', '.join(HOW)}")
        if sum(judgement.primary for judgement in self.judgements) != 1:
            raise ValueError(f"{self.sentence}: one judgement is primary")

    def with_fewer_arms(self, ignores: tuple[str, ...]) -> "Claim":
        """The same claim, whose arms and evaluations leave what `Scale.ignores` names."""

        def each(effects):
            return {label: effect.without(ignores) for label, effect in effects.items()}

        judgements = tuple(
            dataclasses.replace(judgement, effect=judgement.effect.without(ignores))
            for judgement in self.judgements
        )
        return dataclasses.replace(
            self, judgements=judgements, figure=each(self.figure), course=each(self.course)
        )

    def readings(self) -> list[tuple[str, Reading | StudyReading]]:
        """(how, reading) of everything that is judged, drawn or said."""
        judged = [(j.how, reading) for j in self.judgements for _, reading in j.effect.terms]
        shown = [*self.figure.values(), *self.course.values()]
        return judged + [("controlled", r) for effect in shown for _, r in effect.terms]


def load_claim(papers: dict[str, tuple[str, ...]], name: str, scale: Scale) -> Claim:
    """A claim at a scale, from its file.

    Args:
      papers: folder in `experiments/claims` -> names of claims.
      name: of the claim.
      scale: the sizes.
    """
    [paper] = [paper for paper, names in papers.items() if name in names]
    claim = importlib.import_module(f"experiments.claims.{paper}.{name}").claim(scale)
    claim = dataclasses.replace(claim, paper=paper)
    return claim.with_fewer_arms(scale.ignores) if scale.ignores else claim
