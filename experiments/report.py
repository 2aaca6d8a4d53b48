"""The report: one text in Markdown, the same as a page, the findings as JSON, a figure a claim."""

import base64
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from flax import nnx
from markdown_it import MarkdownIt

from experiments.campaign import Campaign, Run
from experiments.claim import Claim, Learned
from experiments.figures import claim_figure
from experiments.judge import LEAST_SEEDS, Finding, Measured, judge
from icl_align.config import Config, WandbConfig, differences, setting
from icl_align.running.files import write_json
from icl_align.running.tracking import log_verdicts
from icl_align.running.training import build_network
from icl_align.transformer import num_parameters

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; display: block;
  overflow-x: auto; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
code { font-size: 0.85em; background: #f4f4f4; padding: 0 0.2em; }
.supported { color: #00704f; } .contradicted { color: #b34700; } .undecided { color: #666; }
"""


def findings_of(campaign: Campaign, registered: int) -> dict[str, list[Finding]]:
    """What the judge says of every judgement, by claim.

    Args:
      campaign: the runs.
      registered: number of judgements that the correction is for, of all claims there are.
    """
    judgements = [(name, j) for name, claim in campaign.claims.items() for j in claim.judgements]
    effects = [
        Measured(campaign.values(j.how, j.effect), j.predicted, campaign.learned(j.how, j.effect))
        for _, j in judgements
    ]
    found: dict[str, list[Finding]] = {name: [] for name in campaign.claims}
    for (name, _), finding in zip(judgements, judge(effects, registered), strict=True):
        found[name].append(finding)
    return found


def write_report(
    campaign: Campaign,
    wandb: WandbConfig,
    command: str,
    every: dict[str, Claim],
    figure_format: str = "png",
) -> Path:
    """Writes FOLDER/report/: index.html, report.md, verdicts.json and a figure a claim.

    Args:
      campaign: what was run.
      wandb: where the verdicts are logged too.
      command: that gives this report.
      every: all claims there are, for whose judgements p is corrected.
      figure_format: of figures beside those of the page.

    Returns:
      The page.
    """
    folder = campaign.folder / "report"
    folder.mkdir(parents=True, exist_ok=True)
    registered = sum(len(claim.judgements) for claim in every.values())
    findings = findings_of(campaign, registered)
    for name, claim in campaign.claims.items():
        figure = claim_figure(campaign, claim, findings[name])
        for ending in {"png", figure_format}:
            figure.savefig(folder / f"{name}.{ending}", dpi=130)
    text = report_text(campaign, findings, command, every)
    rows = verdict_rows(campaign, findings)
    (folder / "report.md").write_text(text)
    (folder / "index.html").write_text(page_of(text, folder))
    write_json(folder / "verdicts.json", rows)
    log_verdicts(campaign.folder, wandb, campaign.folder.name, rows)
    return folder / "index.html"


def verdict_rows(campaign: Campaign, findings: dict[str, list[Finding]]) -> list[dict[str, Any]]:
    """One plain dictionary for each judgement."""
    return [
        {
            "claim": name,
            "judgement": f"{judgement.how}: {judgement.prediction}",
            "predicted": str(judgement.predicted),
            "effect": _number(finding.mean),
            "low": _number(finding.low),
            "high": _number(finding.high),
            "p_value": finding.p_value,
            "corrected": finding.corrected,
            "verdict": finding.verdict,
            "reason": finding.reason,
        }
        for name, claim in campaign.claims.items()
        for judgement, finding in zip(claim.judgements, findings[name], strict=True)
    ]


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


# ----------------------------------------------------------------------------------------- the text


def report_text(
    campaign: Campaign,
    findings: dict[str, list[Finding]],
    command: str,
    every: dict[str, Claim],
) -> str:
    """The whole report in Markdown."""
    registered = sum(len(claim.judgements) for claim in every.values())
    changed = campaign.changed_since_registered(every)
    all_findings = [finding for found in findings.values() for finding in found]
    counts = Counter(finding.verdict for finding in all_findings)
    verdicts = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in ("supported", "contradicted", "undecided")
    )
    parts = [
        "# What the claims came to",
        f"{len(all_findings)} judgements of {len(findings)} claims: {verdicts}. "
        f"Made by `{command}`.",
        verdict_table(campaign, findings),
        "Effects are means over the seeds with 95% bootstrap intervals; p is corrected for all "
        f"{registered} registered judgements. [How it is judged](#how-it-is-judged) says more. In "
        "the figures a circle is a seed, the bar the mean with its interval, and blue the range "
        "where it was predicted; bands are 95% bootstrap intervals too.",
    ]
    for name, claim in campaign.claims.items():
        parts += claim_section(campaign, name, claim, findings[name])
    parts += [
        "## How it is judged",
        _rule(registered, changed, campaign.scale.learned),
        "## What was run",
    ]
    parts += _account(campaign)
    return "\n\n".join(parts) + "\n"


def verdict_table(campaign: Campaign, findings: dict[str, list[Finding]]) -> str:
    """The verdicts, a line for each judgement."""
    lines = [
        "| claim | judged | prediction | effect | predicted | p | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, claim in campaign.claims.items():
        for judgement, finding in zip(claim.judgements, findings[name], strict=True):
            cells = [
                f"[{name}](#{name.replace('_', '-')})",
                judgement.how,
                judgement.prediction,
                effect_cell(finding),
                str(judgement.predicted),
                "" if math.isnan(finding.mean) else f"{finding.corrected:.2g}",
                f"**{finding.verdict}**",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def effect_cell(finding: Finding) -> str:
    """Mean and interval."""
    if math.isnan(finding.mean):
        return "none"
    return f"{finding.mean:z.3f} [{finding.low:z.3f}, {finding.high:z.3f}]"


def claim_section(
    campaign: Campaign, name: str, claim: Claim, findings: list[Finding]
) -> list[str]:
    """A claim's section: sentence, reasons, figure, runs."""
    reasons = [
        f"- **{finding.verdict}**, {judgement.how}: {judgement.prediction}. "
        f"Effect {effect_cell(finding)}, predicted {judgement.predicted}: {finding.reason}."
        for judgement, finding in zip(claim.judgements, findings, strict=True)
    ]
    return [
        f"## {name.replace('_', ' ')}",
        f"{claim.sentence} ({claim.place})",
        "\n".join(reasons),
        f"![{name}: curves, and each judged effect with its seeds]({name}.png)",
        _arms_table(campaign, claim),
    ]


def _arms_table(campaign: Campaign, claim: Claim) -> str:
    lines = [
        "| run | judged | learning rate | training loss | parameters | folder |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    seen = dict.fromkeys((how, reading.arm) for how, reading in claim.readings())
    for how, arm in seen:
        run = campaign.chosen(how, arm)
        label = " ".join(f"`{text}`" for text in arm.overrides) or "base"
        if run is None:
            lines.append(f"| {label} | {how} | missing | | | |")
            continue
        losses = campaign.training_losses(how, arm)
        rate, others = run.config.train.learning_rate, ""
        if len(losses) > 1:
            edge = ", at the edge" if rate in (min(losses), max(losses)) else ""
            others = "; ".join(f"{r:g}: {loss:.3f}" for r, loss in losses.items() if r != rate)
            others = f"{edge} ({others})"
        loss = "diverged" if run.diverged() else f"{losses[rate]:.3f}{others}"
        tuned = f"{rate:g}" if len(losses) > 1 else f"{rate:g}, not tuned"
        parameters = f"{parameters_of(run.config):,}"
        cells = [label, how, tuned, loss, parameters, f"`{_digest(run)}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parameters_of(config: Config) -> int:
    """Trainable scalars of a configuration's transformer."""
    return num_parameters(nnx.eval_shape(lambda: build_network(config, 0)))


def _not_learned(learned: Learned | None) -> str:
    return f", or a comparison of runs none of which has learned {learned.words}" if learned else ""


def _rule(registered: int, changed: list[str], learned: Learned | None) -> str:
    when = "All of this was written down (registered.json) before the first run"
    if changed:
        when += f", and changed since for {', '.join(changed)}"
    return (
        "Each judgement predicts the range of one effect, a sum of readings of trained runs, with "
        "one value a seed; all runs share the seeds, so differences are paired, and every seed is "
        "evaluated on contexts of its own, so that its values are replicates. *Published* takes "
        "the paper's quantity, every run at one learning rate, and its confounded variants; "
        "*controlled* changes one thing and takes each run's learning rate of lowest training "
        "loss over the same grid, for all runs of a comparison or, where the tables below say so, "
        "for none. One-sided t-tests ask whether the mean is inside or outside the "
        f"range; their p is corrected for all {registered} judgements after Holm. *Supported*: "
        "inside, corrected p < 0.05, and the 95% bootstrap interval inside as well. "
        f"*Contradicted*: the same, outside. *Undecided*: anything else, fewer than {LEAST_SEEDS} "
        f"seeds{_not_learned(learned)}. The bootstrap interval of 5 seeds is too narrow by "
        "itself (it covers a Gaussian mean in about 83 of 100 samples). "
        f"{when}; `experiments/alignment.py` says where the smallest effects that count come from."
    )


def _account(campaign: Campaign) -> list[str]:
    runs = list(campaign.runs.values())
    accounts = [
        json.loads((run.folder / "machine.json").read_text())
        for run in runs
        if (run.folder / "machine.json").exists()
    ]
    config = runs[0].config
    base = campaign.base
    changed = [setting(key, new) for key, (_, new) in differences(type(base)(), base).items()]
    seeds = f"seeds {config.seed} to {config.seed + config.num_seeds - 1}"
    lines = [
        f"{len(runs)} configurations, {seeds} each; base: "
        + (", ".join(f"`{text}`" for text in changed) or "the defaults")
        + f". Each seed is evaluated on {config.evaluation.num_contexts} contexts of its own."
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
    rows = ["| folder | configuration beside the base | seconds |", "| --- | --- | --- |"]
    for run in runs:
        rows.append(f"| `{_digest(run)}` | {_options(base, run)} | {_seconds(run)} |")
    return [*lines, "\n".join(rows)]


def _digest(run: Run) -> str:
    return run.folder.name.rpartition("_")[2]


def _options(base: Config, run: Run) -> str:
    changed = differences(base, run.config).items()
    shown = [setting(key, new) for key, (_, new) in changed if not key.startswith("wandb.")]
    return ", ".join(f"`{text}`" for text in shown if not text.startswith("evaluation.")) or "none"


def _seconds(run: Run) -> str:
    path = run.folder / "machine.json"
    if not path.exists():
        return ""
    return f"{json.loads(path.read_text())['seconds']:.0f}"


# ----------------------------------------------------------------------------------------- the page


def page_of(text: str, folder: Path) -> str:
    """The report's text as a page that holds its figures and needs no network."""
    body = MarkdownIt("commonmark").enable("table").render(text)
    body = re.sub(
        r"<h2>([\w ]+)</h2>",
        lambda m: f'<h2 id="{m[1].lower().replace(" ", "-")}">{m[1]}</h2>',
        body,
    )
    body = re.sub(
        r"<strong>(supported|contradicted|undecided)</strong>",
        r'<strong class="\1">\1</strong>',
        body,
    )
    body = re.sub(r'src="([\w.]+)"', lambda m: f'src="{_embedded(folder / m[1])}"', body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>icl_align: claims</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
