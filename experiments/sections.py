"""The section of one claim in the report: registration, reasons, courses, recipes and runs."""

import jax
import numpy as np

from experiments.campaign import JUDGED, PILOT, Campaign
from experiments.claim import Arm, Claim
from experiments.judge import LEAST_SEEDS, interval, settling
from experiments.power import NUMBERS, WANTED
from experiments.registration import is_late
from experiments.runs import Run
from experiments.verdicts import Judged, is_changed, skewness
from icl_align.config import Config
from icl_align.running.training import abstract_network
from icl_align.statistics import CONVERGED_WITHIN

SKEWED = 1.0  # half of what exponential values have, for which Student's test errs


def claim_section(found: list[Judged]) -> list[str]:
    """A claim's section: sentence, registration, reasons, figure, courses, recipes, runs."""
    name, claim, campaign = found[0].name, found[0].claim, found[0].campaign
    reasons = [
        f"- **{one.finding.verdict}**, {'primary, ' if one.judgement.primary else ''}"
        f"{one.judgement.how}: {one.judgement.prediction}. Effect {effect_cell(one)}, predicted "
        f"{one.judgement.predicted}: {one.finding.reason}. {_power_said(one)}"
        f"{_skew_said(one)}"
        for one in found
    ]
    return [
        f"## {name.replace('_', ' ')}",
        f"{claim.sentence} ({claim.place})",
        _registration(found),
        "\n".join(reasons),
        f"![{name}: curves, and each judged effect with its seeds]({name}.png)",
        *_course(found),
        *_moved(found),
        _arms_table(campaign, claim),
    ]


def _registration(found: list[Judged]) -> str:
    one = found[0]
    about = one.campaign.registered.get(one.name)
    if about is None:
        return "Not registered yet: its pilot is not finished."
    notes = "; **changed since**" if any(map(is_changed, found)) else ""
    if is_late(one.campaign, one.name):
        notes += "; **some of its runs, which other claims read too, were begun before**"
    return f"Registered {about['written']}, hash `{about['hash']}`{notes}."


def _power_said(one: Judged) -> str:
    about = one.campaign.registered_as(one.name, one.judgement)
    used = "" if one.values is None else f"{len(one.values)} seeds"
    if about.get("power") is None:
        return f"{used}; the pilot gives no power." if used else "The pilot gives no power."
    needed = about["needed_seeds"] or f"more than {max(NUMBERS)}"
    predicted, resolution = one.judgement.predicted, about["resolution"]
    where = "in the middle of" if predicted.has_two_ends else f"{resolution:g} inside"
    return (
        f"{used or 'No values yet'}; power by the pilot's spread of {about['spread']:.3g}, for an "
        f"effect {where} the predicted range: {about['power']:.2f} with {about['seeds']} seeds; "
        f"{needed} give {WANTED:g}.{_spread_said(one, about['spread'])}"
    )


def _spread_said(one: Judged, pilot: float) -> str:
    """How the judged seeds spread beside the few of the pilot."""
    if one.values is None or len(one.values) < 2 or not np.all(np.isfinite(one.values)):
        return ""
    times = float(np.std(one.values, ddof=1)) / pilot
    number = one.campaign.scale.seeds.pilot
    return f" The judged seeds spread {times:.2g} times as widely as the pilot's {number}."


def _skew_said(one: Judged) -> str:
    skew = skewness(one.values)
    if skew is None or abs(skew) < SKEWED:
        return ""
    return (
        f" The values are skewed ({skew:.1f}); the larger of two tests' p allows for some of that."
    )


def effect_cell(one: Judged) -> str:
    """Mean and interval."""
    return _cell(one.finding.mean, one.finding.low, one.finding.high)


def _cell(mean: float, low: float, high: float) -> str:
    return "none" if np.isnan(mean) else f"{mean:z.3f} [{low:z.3f}, {high:z.3f}]"


def _course(found: list[Judged]) -> list[str]:
    """How curves of a claim go: first, last, and from where on they stay."""
    claim, campaign = found[0].claim, found[0].campaign
    places = campaign.axis()
    if not claim.course or not places:
        return []
    lines = [
        f"| course | {places[0]} | {places[-1]} | change | seeds | settled | 95% of samples |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for label, effect in claim.course.items():
        found_at = [campaign.values("controlled", effect.moved_to(at)) for at in places]
        if any(values is None or not np.all(np.isfinite(values)) for values in found_at):
            lines.append(f"| {label} | missing or diverged | | | | | |")
            continue
        curves = np.stack(found_at, axis=-1)
        first, last = (_cell(np.mean(one), *interval(one)) for one in curves.T[[0, -1]])
        change = curves[:, -1] - curves[:, 0]
        settled, low, high = (places[int(at)] for at in settling(curves))
        cells = label, first, last, _cell(np.mean(change), *interval(change))
        lines.append(f"| {' | '.join(cells)} | {len(curves)} | {settled} | {low} to {high} |")
    said = (
        f"How it goes, {campaign.base.measures.axis_label} {places[0]} to {places[-1]}. It has "
        f"settled where the mean over seeds stays within {CONVERGED_WITHIN:g} of its last, in any "
        f"unit; so of 95% of bootstrap samples of the seeds. {places[-1]} is: not before the end, "
        "and a number near it says only that the last steps are small."
    )
    return [said, "\n".join(lines)]


def _moved(found: list[Judged]) -> list[str]:
    """How the primary effect moves with the recipe of training, with the pilot's seeds."""
    [one] = [one for one in found if one.judgement.primary]
    effect, how, campaign = one.judgement.effect, one.judgement.how, one.campaign
    if not one.claim.moved_by or not campaign.scale.seeds.pilot:
        return []
    rows = {"the pilot, at the chosen rates": campaign.values(how, effect, PILOT)}
    if all(reading.arm.tuned for _, reading in effect.terms):
        rows |= {f"all at {rate:g}": campaign.values_at(effect, rate) for rate in campaign.grid}
    for name, overrides in one.claim.moved_by:
        rows[name] = campaign.values_moved(how, effect, overrides)
    lines = ["| trained with | effect |", "| --- | --- |"]
    for name, values in rows.items():
        usable = values is not None and np.all(np.isfinite(values))
        cell = _cell(float(np.mean(values)), *interval(values)) if usable else "missing or diverged"
        lines.append(f"| {name} | {cell} |")
    seeds = campaign.scale.seeds.pilot
    said = (
        f"How the primary effect moves with the recipe: {seeds} seeds, no verdict; where no rate "
        "is named, at the rates of the first row."
    )
    if seeds < LEAST_SEEDS:
        said += " The intervals are Student's."
    return [said, "\n".join(lines)]


def _arms_table(campaign: Campaign, claim: Claim) -> str:
    lines = [
        "| run | judged | learning rate | loss in the pilot | seeds | parameters | folder |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for how, arm in dict.fromkeys((how, reading.arm) for how, reading in claim.readings()):
        label = " ".join(f"`{text}`" for text in arm.overrides) or "base"
        run = campaign.run_of(how, arm, JUDGED)
        if run is None:
            lines.append(f"| {label} | {how} | missing | | | | |")
            continue
        cells = [label, how, *_tuning(campaign, how, arm), str(run.config.num_seeds)]
        cells += [
            f"{parameters_of(run.config):,}",
            f"[`{digest(run)}`](../runs/{run.folder.name})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _tuning(campaign: Campaign, how: str, arm: Arm) -> tuple[str, str]:
    """The rate of an arm, and the losses that it was chosen by."""
    rate = campaign.chosen_rate(how, arm)
    if not campaign.scale.seeds.pilot:
        return f"{rate:g}, no pilot", ""
    losses = campaign.training_losses(how, arm)
    if len(losses) == 1:
        return f"{rate:g}, not tuned", f"{losses[rate]:.3f}"
    edge = ", at the edge" if rate in (min(losses), max(losses)) else ""
    return f"{rate:g}{edge}", "; ".join(f"{r:g}: {loss:.3f}" for r, loss in losses.items())


def parameters_of(config: Config) -> int:
    """Trainable scalars of a configuration's transformer."""
    _, shapes = abstract_network(config)
    return sum(shape.size for shape in jax.tree.leaves(shapes))


def digest(run: Run) -> str:
    """Of its configuration, with which the name of its folder ends."""
    return run.folder.name.rpartition("_")[2]
