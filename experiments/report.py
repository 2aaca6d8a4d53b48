"""The report: one text in Markdown, the same as a page, the findings as JSON, a figure a claim."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments.campaign import JUDGED, PILOT, Campaign
from experiments.claim import PAPERS, Arm, Claim
from experiments.figures import claim_figure, verdicts_figure
from experiments.judge import LEAST_SEEDS, interval, settling
from experiments.page import page_of
from experiments.power import NUMBERS, WANTED
from experiments.registration import is_late
from experiments.runs import Run, trained_differently
from experiments.verdicts import (
    Judged,
    is_changed,
    judged,
    skewness,
    verdict_rows,
)
from icl_align.config import Config, WandbConfig, differences, setting
from icl_align.running.files import DamagedFileError, read_json, save_figure, write_json
from icl_align.running.tracking import log_verdicts
from icl_align.running.training import build_network
from icl_align.statistics import CONVERGED_WITHIN
from icl_align.transformer import num_parameters

SKEWED = 1.0  # half of what exponential values have, for which Student's test errs
SAID = {"supported": "What holds", "contradicted": "What does not", "undecided": "What is open"}


def write_report(
    campaigns: dict[str, Campaign],
    wandb: WandbConfig,
    command: str,
    figure_format: str = "png",
) -> Path:
    """Writes FOLDER/report/: index.html, report.md, verdicts.json, a figure of all verdicts and one
    a claim. What an earlier report has left there goes.

    Args:
      campaigns: world -> what was run, all in one folder.
      wandb: where the verdicts are logged too.
      command: that gives this report.
      figure_format: of figures beside those of the page.

    Returns:
      The page.
    """
    top = next(iter(campaigns.values())).folder
    folder, found = top / "report", judged(campaigns)
    figures = {"verdicts": verdicts_figure(found)}
    for name in dict.fromkeys(one.name for one in found):
        figures[name] = claim_figure([one for one in found if one.name == name])
    text, rows = report_text(campaigns, found, command), verdict_rows(found)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    for name, figure in figures.items():
        for ending in {"png", figure_format}:
            save_figure(figure, folder / f"{name}.{ending}")
    (folder / "report.md").write_text(text)
    (folder / "index.html").write_text(page_of(text, folder))
    write_json(folder / "verdicts.json", rows)
    log_verdicts(top, wandb, top.name, rows)
    return folder / "index.html"


def report_text(campaigns: dict[str, Campaign], found: list[Judged], command: str) -> str:
    """The whole report in Markdown."""
    primary = [one for one in found if one.judgement.primary]
    counts = Counter(one.finding.verdict for one in primary)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in SAID)
    parts = [
        "# What the claims came to",
        f"{len(primary)} claims, each with one primary judgement: {verdicts}. Made by `{command}`.",
    ]
    small = {c.scale.world for c in campaigns.values() if not c.scale.judges}
    if small:
        parts.append(
            "**This scale judges nothing.** Its runs show that everything runs; they are too small "
            "and too short to learn, and what such networks do says nothing of a claim."
        )
    parts.append(
        "![every primary effect with its interval, in units of the smallest effect that counts]"
        "(verdicts.png)"
    )
    for paper, title in PAPERS.items():
        of_paper = [one for one in found if one.claim.paper == paper]
        if of_paper:
            parts += _paper(title, of_paper)
    parts += ["# Every claim"]
    for name in dict.fromkeys(one.name for one in found):
        parts += claim_section([one for one in found if one.name == name])
    parts += ["# How it is judged", _rule(found), "# What was run"]
    for campaign in campaigns.values():
        parts += _account(campaign)
    return "\n\n".join(parts) + "\n"


def _paper(title: str, found: list[Judged]) -> list[str]:
    parts = [f"# {title}"]
    for verdict, words in SAID.items():
        named = [
            f"- {one.claim.sentence} [{one.name}](#{_anchor(one.name)}): {effect_cell(one)}, "
            f"predicted {one.judgement.predicted}"
            for one in found
            if one.judgement.primary and one.finding.verdict == verdict
        ]
        parts += [f"**{words}**", "\n".join(named)] if named else []
    return [*parts, verdict_table(found)]


def verdict_table(found: list[Judged]) -> str:
    """The verdicts, a line for each judgement."""
    lines = [
        "| claim | judged | prediction | effect | predicted | p | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        judgement, finding = one.judgement, one.finding
        cells = [
            f"[{one.name}](#{_anchor(one.name)})",
            ("**primary**, " if judgement.primary else "") + judgement.how,
            judgement.prediction,
            effect_cell(one),
            str(judgement.predicted),
            "" if np.isnan(finding.mean) else f"{finding.corrected:.2g}",
            f"**{finding.verdict}**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _anchor(name: str) -> str:
    return name.replace("_", "-")


def effect_cell(one: Judged) -> str:
    """Mean and interval."""
    return _cell(one.finding.mean, one.finding.low, one.finding.high)


def _cell(mean: float, low: float, high: float) -> str:
    return "none" if np.isnan(mean) else f"{mean:z.3f} [{low:z.3f}, {high:z.3f}]"


def claim_section(found: list[Judged]) -> list[str]:
    """A claim's section: sentence, registration, reasons, figure, what moves it, runs."""
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
        f"{needed} give {WANTED:g}."
    )


def _skew_said(one: Judged) -> str:
    skew = skewness(one.values)
    if skew is None or abs(skew) < SKEWED:
        return ""
    return f" The values are skewed ({skew:.1f}): more seeds would make the verdict safer."


def _course(found: list[Judged]) -> list[str]:
    """How curves of a claim go: first, last, and from where on they stay."""
    claim, campaign = found[0].claim, found[0].campaign
    places = campaign.axis()
    if not claim.course or not places:
        return []
    lines = [
        f"| course | {places[0]} | {places[-1]} | change | settled | of samples |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for label, effect in claim.course.items():
        found_at = [campaign.values("controlled", effect.moved_to(at)) for at in places]
        if any(values is None or not np.all(np.isfinite(values)) for values in found_at):
            lines.append(f"| {label} | missing or diverged | | | | |")
            continue
        curves = np.stack(found_at, axis=-1)
        first, last = (_cell(np.mean(one), *interval(one)) for one in curves.T[[0, -1]])
        change = curves[:, -1] - curves[:, 0]
        settled, low, high = (places[int(at)] for at in settling(curves))
        cells = label, first, last, _cell(np.mean(change), *interval(change))
        lines.append(f"| {' | '.join(cells)} | {settled} | {low} to {high} |")
    said = (
        f"How it goes, {campaign.base.measures.axis_label} {places[0]} to {places[-1]}. It has "
        f"settled where the mean over seeds stays within {CONVERGED_WITHIN:g} of its last "
        f"({places[-1]}: not before the end); so of 95% of bootstrap samples of the seeds."
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
    said = f"How the primary effect moves with the recipe, at the same rates ({seeds} seeds):"
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
            f"[`{_digest(run)}`](../runs/{run.folder.name})",
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
    return num_parameters(nnx.eval_shape(lambda: build_network(config, 0)))


def _rule(found: list[Judged]) -> str:
    families = found[0].campaign.families
    when = (
        "What is predicted was written down (registered.json) before the first run that is judged"
    )
    except_for = dict.fromkeys(
        one.name
        for one in found
        if one.name not in one.campaign.registered
        or is_changed(one)
        or is_late(one.campaign, one.name)
    )
    if except_for:
        when += f", except for {', '.join(except_for)}"
    learned = {c.scale.learned.words for c in _campaigns(found) if c.scale.learned}
    return (
        "Each judgement predicts the range of one effect, a sum of readings of trained runs, with "
        "one value a seed; all runs share the seeds, so differences are paired, and every seed is "
        "evaluated on contexts of its own, so that its values are replicates. *Published* takes "
        "the paper's quantity, every run at one learning rate, and its confounded variants; "
        "*controlled* changes one thing and takes each run's learning rate of lowest training "
        "loss in the pilot, over the same grid and with other seeds, for all runs of a "
        "comparison or for none. One-sided tests ask whether the mean is inside or outside the "
        "range; the p of a test is the larger of Student's and of the studentized bootstrap's, "
        f"which stands skewed values. It is corrected after Holm, for {families[True].tests} "
        f"primary judgements at a level of {families[True].level:g} and for "
        f"{families[False].tests} exploratory ones at "
        f"{families[False].level:g}: of Gaussian values any wrong verdict has a probability of "
        "0.05 at most. "
        "*Supported*: inside, and the 95% interval (studentized bootstrap) inside as well. "
        f"*Contradicted*: the same, outside. *Undecided*: anything else, fewer than {LEAST_SEEDS} "
        f"seeds, or an effect of runs none of which has learned {' or '.join(sorted(learned))}. "
        f"{when}. `python -m experiments simulate` measures the judge, `check` computes all of "
        "this anew."
    )


def _campaigns(found: list[Judged]) -> list[Campaign]:
    return list({id(one.campaign): one.campaign for one in found}.values())


def _account(campaign: Campaign) -> list[str]:
    runs = list(campaign.runs.values())
    accounts = [account for run in runs if (account := _account_of(run))]
    base, seeds = campaign.base, campaign.scale.seeds
    changed = [setting(key, new) for key, (_, new) in differences(type(base)(), base).items()]
    networks = sum(run.config.num_seeds for run in runs)
    lines = [
        f"**world={campaign.scale.world}**: {len(runs)} runs of {networks} networks; base: "
        + (", ".join(f"`{text}`" for text in changed) or "the defaults")
        + f". Judged are {seeds.judged} seeds from {seeds.first} on, for primary judgements up to "
        f"{seeds.most}; the pilot has {seeds.pilot} from {seeds.first_pilot} on, and a grid of "
        + f"{', '.join(f'{rate:g}' for rate in campaign.grid)}. "
        f"Each seed is evaluated on {base.evaluation.num_contexts} contexts of its own."
    ]
    if accounts:
        seconds = sum(account["seconds"] for account in accounts)
        versions = {
            f"{name} {v}" for account in accounts for name, v in account["versions"].items()
        }
        versions |= {f"Python {account['python']}" for account in accounts}
        lines.append(
            f"Machine: {'; '.join(sorted({account['device'] for account in accounts}))}. "
            f"{seconds / 60:.0f} minutes of jobs in all. {', '.join(sorted(versions))}."
        )
    rows = [
        "| folder | configuration beside the base | seeds | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for run in runs:
        link = f"[`{_digest(run)}`](../runs/{run.folder.name})"
        seeds_of = f"{run.config.seed} to {run.config.seed + run.config.num_seeds - 1}"
        rows.append(f"| {link} | {_options(base, run)} | {seeds_of} | {_seconds(run)} |")
    return [*lines, "\n".join(rows)]


def _digest(run: Run) -> str:
    return run.folder.name.rpartition("_")[2]


def _options(base: Config, run: Run) -> str:
    shown = trained_differently(base, run.config)
    return ", ".join(f"`{text}`" for text in shown) or "none"


def _seconds(run: Run) -> str:
    account = _account_of(run)
    return f"{account['seconds']:.0f}" if account else ""


def _account_of(run: Run) -> dict[str, Any]:
    """What the run was made with; nothing where that is not known."""
    try:
        return read_json(run.folder / "machine.json")
    except (DamagedFileError, FileNotFoundError):
        return {}
