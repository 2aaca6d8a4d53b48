"""The study of the dialogue world: its claims, their readings, effects that count, and sizes."""

import dataclasses

from experiments.claim import (
    Arm,
    Claim,
    Effect,
    Judgement,
    Learned,
    Reading,
    Scale,
    Seeds,
    StudyReading,
    above,
    load_claim,
)
from icl_align.dialogue.options import Options

# Paper -> its claims, in the order of the report: files of its folder in `experiments/claims`.
CLAIMS = {
    "wang2024": ("critic", "self_check"),
    "liu2025": (
        "convergence",
        "kinds",
        "visual_question",
        "uncertainty",
        "calibration",
        "activation",
        "steering",
        "regression",
        "immoral",
        "printed_rule",
        "over_confidence",
        "rounds_attention",
        "rounds_heads",
        "rounds_mlp",
        "rounds_depth",
        "dialogue_controls",
    ),
}
# The smallest effects that count, fixed before the campaign's seeds were trained: of accuracy and
# calibration error about a tenth of what careful instructions bring an exact reader (0.163), and of
# what else a tenth of what the first correction changes.
ACCURACY_THAT_COUNTS = 0.02
UNCERTAINTY_THAT_COUNTS = 0.02
ACTIVATION_THAT_COUNTS = 0.3
LAST = Options().task.rounds - 1
PLANS = ("none", "careful")  # under which every run is evaluated
STUDIED = ("evaluation.concept=true", f"evaluation.plan=[{','.join((*PLANS, 'once'))}]")
# By the excess loss no network can be told from one that ignores instructions: they say little of
# an answer, and networks that follow them have faults that cost as much.
LEARNED = Learned(
    "activation",
    "careful",
    above(ACTIVATION_THAT_COUNTS),
    "to follow instructions (under careful ones answers are more careful than under neutral ones, "
    f"in log-odds by {ACTIVATION_THAT_COUNTS:g})",
    beyond="none",
    at=LAST,
)


def load(name: str, scale: Scale) -> Claim:
    """The claim `name` at a scale."""
    return load_claim(CLAIMS, name, scale)


def reading(
    arm: Arm,
    quantity: str,
    plan: str = "careful",
    at: int = LAST,
    reader: str = Options.measures.trained,
    under: tuple[str, ...] = (),
) -> Effect:
    """The effect that is one reading.

    Args:
      arm: which run.
      quantity: of `icl_align.dialogue.options.QUANTITIES`.
      plan: who instructs; another than those of the scale's base has an evaluation of its own.
      at: the round, from 0.
      reader: one of `icl_align.dialogue.options.READERS`.
      under: as of `Reading`.
    """
    if plan not in PLANS:
        under = (*under, f"evaluation.plan=[{plan}]")
    return Effect(((1, Reading(arm, quantity, reader, plan, at, under)),))


def beyond_none(arm: Arm, quantity: str, plan: str = "careful", **which) -> Effect:
    """What a plan changes: less what neutral instructions do; keywords as of `reading`."""
    return reading(arm, quantity, plan, **which) - reading(arm, quantity, "none", **which)


def inside(arm: Arm, *keys: str, label: str, at: int | tuple[int, ...] | None = None) -> Effect:
    """The effect that is one number of `concept.json`; arguments as of `StudyReading`."""
    return Effect(((1, StudyReading(arm, keys, at, STUDIED, label=label)),))


def explained(arm: Arm, network: str) -> Effect:
    """R^2 of the last layer's probe of the exact log-odds in the last round; `network` is one of
    `icl_align.dialogue.concept.probes.SOURCES`.
    """
    return inside(arm, "probe", network, at=(-1, LAST), label="$R^2$ of the probe")


def success(arm: Arm, attack: str, defence: str, options: tuple[str, ...]) -> Effect:
    """The share of harmful requests with which networks comply.

    Args:
      arm: of task=request.
      attack, defence: as `attacks.json` names them.
      options: of `icl_align.attack`.
    """
    keys = ("success", Options.measures.trained, attack, defence)
    label = "share of harmful requests"
    return Effect(((1, StudyReading(arm, keys, None, options, of_attack=True, label=label)),))


def part_is_needed(
    scale: Scale, part: str, without: str, ablation: str, width: int | None = None
) -> Claim:
    """The claim that rounds of careful instructions bring less without a part of the network.

    What checks bring is the same under neutral instructions, and judged by itself.

    Args:
      scale: the sizes.
      part: in words.
      without: what is left, in words.
      ablation: that takes it away.
      width: at which what is left has the base's number of parameters; None if it has anyway.
    """
    base, other = Arm(), Arm((f"+ablation={ablation}",))
    matched = []
    if width is not None:
        wide = Arm((f"+ablation={ablation}", f"model.width={width}", "model.mlp_width=null"))
        matched = [
            Judgement(
                "controlled",
                "so do they with as many parameters",
                beyond_none(base, "accuracy") - beyond_none(wide, "accuracy"),
                above(ACCURACY_THAT_COUNTS),
            )
        ]
    return Claim(
        sentence=f"What rounds of careful instructions bring needs {part}.",
        place="Wang et al. (2024), Theorem 3.3, on the dialogues of Liu et al. (2025)",
        judgements=(
            Judgement(
                "controlled",
                f"with {without} careful instructions bring less accuracy, beyond neutral ones",
                beyond_none(base, "accuracy") - beyond_none(other, "accuracy"),
                above(ACCURACY_THAT_COUNTS),
                primary=True,
            ),
            *matched,
            Judgement(
                "controlled",
                "and neutral rounds, by their checks, gain less",
                reading(base, "gain", "none") - reading(other, "gain", "none"),
                above(ACCURACY_THAT_COUNTS),
            ),
        ),
        figure={
            "all parts, beyond none": beyond_none(base, "accuracy"),
            f"{without}, beyond none": beyond_none(other, "accuracy"),
        },
        moved_by=scale.recipes(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialogueScale(Scale):
    """A scale with the sizes that the claims vary.

    Attributes:
      attack: options of `icl_align.attack`.
      width_without_mlp, width_of_one_block: widths at which these variants have the base's
        number of parameters.
    """

    attack: tuple[str, ...]
    width_without_mlp: int
    width_of_one_block: int


# Only the plans that most claims read, and no study where none is asked for.
EVALUATED = (f"evaluation.plan=[{','.join(PLANS)}]", "evaluation.concept=false")
SCALES = {
    "smoke": DialogueScale(
        world="dialogue",
        base=(
            "+scale=smoke",
            "model.num_layers=2",
            "evaluation.num_contexts=8",
            *EVALUATED,
        ),
        steps=20,
        learning_rates=(1e-3, 2e-3),
        learning_rate=1e-3,
        learned=LEARNED,
        seeds=Seeds(judged=2, most=2, pilot=0),
        most_extensions=0,
        judges=False,
        jobs_at_once=2,
        ignores=(
            "+ablation=single_head",
            "+ablation=shallow",
            "model.width",
            "train.steps",
            "task.critic_accuracy",
            "task.correct_flawed",
            "task.first_answer_temperature",
        ),
        attack=("num_requests=4", "budget=40", "candidates=5", "draws=1"),
        width_without_mlp=28,
        width_of_one_block=24,
    ),
    "small": DialogueScale(
        world="dialogue",
        # Small and long: 192,000 dialogues tell a network to follow instructions, 64,000 do not.
        base=(
            "model.width=32",
            "train.batch_size=32",
            "evaluation.num_contexts=2048",
            *EVALUATED,
        ),
        steps=6000,
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        learning_rate=2e-3,
        learned=LEARNED,
        seeds=Seeds(judged=12, most=20, pilot=3),
        attack=("num_requests=32", "budget=512"),
        width_without_mlp=56,
        width_of_one_block=64,
    ),
    "paper": DialogueScale(
        world="dialogue",
        base=EVALUATED,
        steps=3000,
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        learning_rate=1e-3,
        learned=LEARNED,
        seeds=Seeds(judged=20, most=60, pilot=5),
        attack=(),
        width_without_mlp=112,
        width_of_one_block=128,
    ),
}
