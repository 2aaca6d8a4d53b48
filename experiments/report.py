"""The report: one text in Markdown, the same as a page, the findings as JSON, a figure a claim."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from experiments.campaign import Campaign
from experiments.claim import PAPERS
from experiments.figures import claim_figure, verdicts_figure
from experiments.judge import LEAST_SEEDS
from experiments.page import page_of
from experiments.registration import is_late
from experiments.runs import Run, trained_differently
from experiments.sections import claim_section, digest, effect_cell
from experiments.verdicts import (
    Judged,
    is_changed,
    judged,
    verdict_rows,
)
from icl_align.config import Config, WandbConfig, differences, setting
from icl_align.running.files import DamagedFileError, read_json, save_figure, write_json
from icl_align.running.tracking import log_verdicts

SAID = {"supported": "What holds", "contradicted": "What does not", "undecided": "What is open"}
IN_PART = "What holds, though an exploratory prediction of the same claim does not"


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
    # Whole before it takes the place of an earlier one.
    made = top / "report.new"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    for name, figure in figures.items():
        for ending in {"png", figure_format}:
            save_figure(figure, made / f"{name}.{ending}")
    (made / "report.md").write_text(text)
    (made / "index.html").write_text(page_of(text, made))
    write_json(made / "verdicts.json", rows)
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and not (made / path.name).exists():
            path.unlink()
    for path in made.iterdir():
        path.replace(folder / path.name)
    made.rmdir()
    log_verdicts(top, wandb, top.name, rows)
    return folder / "index.html"


def report_text(campaigns: dict[str, Campaign], found: list[Judged], command: str) -> str:
    """The whole report in Markdown."""
    primary = [one for one in found if one.judgement.primary]
    counts = Counter(one.finding.verdict for one in primary)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in SAID)
    if lost := sum(one.values is None for one in primary):
        verdicts += f" ({lost} of these for a run is missing)"
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
    if ignored := dict.fromkeys(one for c in campaigns.values() for one in c.scale.ignores):
        parts.append(
            "Arms that differ in the following alone are one run here, whatever their labels say: "
            + ", ".join(f"`{one}`" for one in ignored)
            + "."
        )
    parts.append(
        "![every primary effect with its interval, in units of the smallest effect that counts]"
        "(verdicts.png)"
    )
    for paper, title in PAPERS.items():
        of_paper = [one for one in found if one.claim.paper == paper]
        if of_paper:
            parts += [f"# {title}", *_lists(of_paper), verdict_table(of_paper)]
    parts += ["# Every claim"]
    for name in dict.fromkeys(one.name for one in found):
        parts += claim_section([one for one in found if one.name == name])
    parts += ["# How it is judged", _rule(found), "# What was run"]
    for campaign in campaigns.values():
        parts += _account(campaign)
    return "\n\n".join(parts) + "\n"


def _lists(found: list[Judged]) -> list[str]:
    """The primary judgements of a paper by their verdict: of its statements, and of our own."""
    primary = [one for one in found if one.judgement.primary]
    parts = []
    for ours, whose in ((False, ""), (True, "Our own questions. ")):
        lists: dict[str, list[str]] = {}
        for one in primary:
            if one.claim.place.startswith("ours") == ours:
                others = _others(one, found)
                words = SAID[one.finding.verdict]
                if one.finding.verdict == "supported" and others["contradicted"]:
                    words = IN_PART
                lists.setdefault(words, []).append(_primary_said(one, others))
        for words in (SAID["supported"], IN_PART, SAID["contradicted"], SAID["undecided"]):
            if words in lists:
                parts += [f"**{whose}{words}**", "\n".join(lists[words])]
    return parts


def _primary_said(one: Judged, others: Counter[str]) -> str:
    """What was judged comes first: the sentence may say more."""
    said = ", ".join(f"{others[verdict]} {verdict}" for verdict in SAID if others[verdict])
    return (
        f"- [{one.name}](#{_anchor(one.name)}): {one.judgement.prediction}. {effect_cell(one)}, "
        f"predicted {one.judgement.predicted}{f'; exploratory: {said}' if said else ''}. It stands "
        f'for: "{one.claim.sentence}" ({one.claim.place})'
    )


def _others(one: Judged, found: list[Judged]) -> Counter[str]:
    """How the exploratory judgements of a claim came out."""
    return Counter(
        o.finding.verdict for o in found if o.name == one.name and not o.judgement.primary
    )


def verdict_table(found: list[Judged]) -> str:
    """The verdicts, a line for each judgement."""
    lines = [
        "| claim | judged | prediction | effect | predicted | corrected p | verdict |",
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
        f"which errs less on skewed values. It is corrected after Holm, for {families[True].tests} "
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
        link = f"[`{digest(run)}`](../runs/{run.folder.name})"
        seeds_of = f"{run.config.seed} to {run.config.seed + run.config.num_seeds - 1}"
        rows.append(f"| {link} | {_options(base, run)} | {seeds_of} | {_seconds(run)} |")
    return [*lines, "\n".join(rows)]


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
