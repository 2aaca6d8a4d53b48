"""Readings of a campaign of dialogues beside the judged ones: what the page "What was found" gives.

python -m experiments.readings scale=small

Each is a mean over seeds with the judge's 95% interval; nothing here is judged. What names no kind,
no other training and no attack is of the default kind at the best rate.
"""

import functools
import sys
from collections.abc import Iterator

import numpy as np

from experiments import dialogue
from experiments.__main__ import campaigns_of, load_all
from experiments.campaign import Campaign
from experiments.claim import Arm, Effect, Scale
from experiments.claims.liu2025.dialogue_controls import CHECKED_AT_RANDOM
from experiments.claims.liu2025.kinds import QUESTIONS, TEXTS
from experiments.claims.liu2025.steering import MINUS, PLUS, steered
from experiments.claims.wang2024.critic import SELF
from experiments.claims.wang2024.self_check import ATTACKS, attack_options
from experiments.dialogue import (
    LAST,
    PLANS,
    beyond_none,
    explained,
    reading,
    success,
)
from experiments.judge import interval
from experiments.options import SEEDS_FILE, CampaignOptions, folder_of, take_seeds
from icl_align.config import ConfigError
from icl_align.dialogue.concept.study import HAZARDS
from icl_align.dialogue.options import Options
from icl_align.running.command import begin, show
from icl_align.running.compose import read_options
from icl_align.running.errors import one_line_errors
from icl_align.running.files import DamagedFileError, read_json

inside = functools.partial(dialogue.inside, label="")
READERS = ("language_model", "exact", "exact_own_answers_ignored")
BASE = Arm()
NOISY = Arm(("task=visual_question",), tuned=False)
SHARPENED = Arm(("task.first_answer_temperature=0.5",), tuned=False)
CALIBRATION = "calibration_error_corrected"
Labelled = tuple[str, Effect]


def instructions() -> Iterator[Labelled]:
    """What comes with and without instructions."""
    for quantity in ("accuracy", "uncertainty", CALIBRATION):
        for plan in PLANS:
            for at in (0, 1, LAST):
                yield f"{quantity}, {plan}, round {at}", reading(BASE, quantity, plan, at=at)
            change = reading(BASE, quantity, plan) - reading(BASE, quantity, plan, at=0)
            yield f"{quantity}, {plan}, change", change
    for at in range(1, LAST + 1):
        step = beyond_none(BASE, "accuracy", at=at) - beyond_none(BASE, "accuracy", at=at - 1)
        yield f"accuracy beyond none, by correction {at}", step
    yield (
        "accuracy, none, last, exact_own_answers_ignored",
        reading(BASE, "accuracy", "none", reader=READERS[2]),
    )


def guessed_checks() -> Iterator[Labelled]:
    """What is left where checks say nothing."""

    def at(quantity: str, plan: str, place: int, reader: str) -> Effect:
        return reading(BASE, quantity, plan, at=place, reader=reader, under=CHECKED_AT_RANDOM)

    for reader in READERS[:2]:
        for quantity in ("accuracy", "uncertainty"):
            change = at(quantity, "none", LAST, reader) - at(quantity, "none", 0, reader)
            yield f"checks that guess: {quantity}, none, change, {reader}", change
    for first, last in ((0, 2), (LAST - 2, LAST)):
        change = at("accuracy", "careful", last, READERS[0])
        change -= at("accuracy", "careful", first, READERS[0])
        yield f"checks that guess: accuracy, careful, round {first} to {last}", change


def concept() -> Iterator[Labelled]:
    """What answers imply, what a probe reads, what steers."""
    for reader in READERS:
        for plan in (*PLANS, "speakers"):
            change = reading(BASE, "activation", plan, reader=reader)
            change -= reading(BASE, "activation", plan, at=0, reader=reader)
            yield f"activation by the answers, {plan}, change, {reader}", change
        beyond = beyond_none(BASE, "activation", reader=reader)
        yield f"activation by the answers, careful less none, last, {reader}", beyond
    read = [inside(BASE, "read", "reading", "none", at=at) for at in (1, LAST)]
    yield f"probe's reading, none, round 1 to {LAST}", read[1] - read[0]
    for at in (1, 2, 4, LAST):
        trained, untrained = (
            inside(BASE, "probe", network, at=(-1, at)) for network in ("trained", "untrained")
        )
        yield f"R^2 of the probe, round {at}, trained", trained
        yield f"R^2 of the probe, round {at}, untrained", untrained
    yield (
        "R^2 of the probe, last, trained less untrained",
        explained(BASE, "trained") - explained(BASE, "untrained"),
    )
    for direction in ("pattern", "probe"):
        for quantity in ("activation", "uncertainty", "accuracy"):
            of, random = (
                steered(BASE, d, quantity, PLUS) - steered(BASE, d, quantity, MINUS)
                for d in (direction, "random")
            )
            yield f"a dose along the {direction} less one against it: {quantity}", of - random
    for reader in ("language_model", "exact"):
        for name in ("concept", "commonest"):
            yield f"regression: {name}, {reader}", inside(BASE, "prediction", reader, name)
    hazard = HAZARDS.index(Options().task.hazard)
    for later in (0, 1, 2):
        for quantity in ("reading", "activation"):
            kept = inside(BASE, "immoral", READERS[0], quantity, at=later)
            yield f"immoral instruction, {later} rounds later, {quantity}", kept
        for reader in READERS[1:]:
            kept = inside(BASE, "immoral", reader, at=(hazard, later))
            yield f"immoral instruction, {later} rounds later, {reader}", kept
        kept = inside(BASE, "immoral", "exact", at=(len(HAZARDS) - 1, later))
        yield f"immoral instruction, {later} rounds later, exact, hazard {HAZARDS[-1]:g}", kept


def kinds() -> Iterator[Labelled]:
    """Each kind, its confidence and its calibration."""
    for kind in (*QUESTIONS, *TEXTS):
        arm = Arm((f"task={kind}",), tuned=False)
        yield f"{kind}: accuracy beyond none, last", beyond_none(arm, "accuracy")
        yield f"{kind}: accuracy beyond none, round 1", beyond_none(arm, "accuracy", at=1)
        yield f"{kind}: excess loss, last", reading(arm, "excess_loss")
    for reader in READERS[:2]:
        for plan in PLANS:
            for at in (0, 1, LAST):
                error = reading(NOISY, CALIBRATION, plan, at=at, reader=reader)
                yield f"visual_question: calibration error, {plan}, round {at}, {reader}", error
        for label, arm in (("default", BASE), ("sharpened", SHARPENED), ("noisy", NOISY)):
            sure, right = (
                reading(arm, quantity, "none", at=0, reader=reader)
                for quantity in ("confidence", "accuracy")
            )
            yield f"first answer, {label}, confidence, {reader}", sure
            yield f"first answer, {label}, accuracy, {reader}", right
            yield f"first answer, {label}, confidence less accuracy, {reader}", sure - right


def checks(scales: dict[str, Scale]) -> Iterator[Labelled]:
    """Own checks, and attacks before one."""
    for accuracy in (0.95, 0.6):
        arm = Arm((f"task.critic_accuracy=[{accuracy}]",), tuned=False)
        gain = reading(arm, "gain", under=SELF)
        yield f"gain by own checks, trained with {accuracy}", gain
    options = attack_options(scales["dialogue"])
    for label, more in (("", ()), (", firm corrections", ("task.correct_flawed=0.9",))):
        arm = Arm(("task=request", *more), tuned=False)
        for attack in ("none", *ATTACKS):
            for defence in ("none", "own_check 1", "own_check 3", "no_check 1"):
                of = success(arm, attack, defence, options)
                yield f"success of {attack} against {defence}{label}", of
                if defence != "none":
                    taken = success(arm, attack, "none", options) - of
                    yield f"{defence} takes of the success of {attack}{label}", taken


def spread_of_contexts(campaign: Campaign) -> Iterator[tuple[str, float]]:
    """Variance over seeds of the exact reader, which differs between them by contexts alone, as a
    share of the network's.
    """

    def late(**which) -> Effect:
        return beyond_none(BASE, "accuracy", **which) - beyond_none(
            BASE, "accuracy", at=LAST - 2, **which
        )

    effects = {
        "accuracy beyond none": lambda **which: beyond_none(BASE, "accuracy", **which),
        f"the same, round {LAST - 2} to {LAST}": late,
        "uncertainty beyond none": lambda **which: beyond_none(BASE, "uncertainty", **which),
        "gain under neutral instructions": lambda **which: reading(BASE, "gain", "none", **which),
    }
    for label, effect in effects.items():
        network, exact = (
            campaign.values("controlled", effect(reader=reader)) for reader in READERS[:2]
        )
        if network is not None and exact is not None and np.var(network) > 0:
            yield label, float(np.var(exact) / np.var(network))


def main() -> None:
    """Prints them all, of the campaign in the folder of a scale."""
    begin()
    with one_line_errors():
        options = read_options(CampaignOptions, sys.argv[1:])
        folder = folder_of(options)
        try:
            take_seeds(folder, read_json(folder / SEEDS_FILE), options)
        except (FileNotFoundError, DamagedFileError) as error:
            raise ConfigError("folder", folder, "holds no campaign; run some claims") from error
        scales = options.scales()
        if not scales["dialogue"].judges:
            raise ConfigError("scale", options.scale, "runs of this scale say nothing")
        every = load_all(scales)
        campaign = campaigns_of(tuple(every["dialogue"]), every, scales, options, "dialogue")[
            "dialogue"
        ]
        if not campaign.is_piloted:
            raise ConfigError("folder", folder, "not all claims on dialogues have their pilot")
        for section in (instructions(), guessed_checks(), concept(), kinds(), checks(scales)):
            for label, effect in section:
                show(f"{label}: {said(campaign.values('controlled', effect))}")
        for label, share in spread_of_contexts(campaign):
            show(f"share of the spread over seeds that contexts make: {label}: {share:.2f}")


def said(values: np.ndarray | None) -> str:
    """Mean, interval and number of seeds."""
    if values is None or not np.all(np.isfinite(values)):
        return "a run is missing or diverged"
    low, high = interval(values)
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}] ({len(values)} seeds)"


if __name__ == "__main__":
    main()
