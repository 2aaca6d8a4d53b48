"""From runs to verdicts: findings of every judgement, and verdicts.json with all they stand on."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.campaign import Campaign
from experiments.claim import Claim, Judgement
from experiments.judge import Finding, Measured, judge
from experiments.registration import digest_of, is_late, registration_of
from icl_align.running.files import read_json


class Judged(NamedTuple):
    """A judgement with all that is known of it."""

    name: str  # of its claim
    claim: Claim
    judgement: Judgement
    campaign: Campaign
    values: np.ndarray | None  # one a seed
    finding: Finding


def judged(campaigns: dict[str, Campaign]) -> list[Judged]:
    """Every judgement of some campaigns, in their order, with what the judge says of it.

    Args:
      campaigns: world -> what was run; p is corrected for their families, which they share.
    """
    families = next(iter(campaigns.values())).families
    every = [
        (name, claim, judgement, campaign)
        for campaign in campaigns.values()
        for name, claim in campaign.claims.items()
        for judgement in claim.judgements
    ]
    values = [_registered_values(campaign, name, one) for name, _, one, campaign in every]
    findings: dict[int, Finding] = {}
    for primary, family in families.items():
        places = [n for n, (_, _, one, _) in enumerate(every) if one.primary == primary]
        effects = [_measured(values[n], *every[n][2:]) for n in places]
        findings |= zip(places, judge(effects, family), strict=True)
    return [
        Judged(*every[n], values[n], _unless_too_small(every[n][3], findings[n]))
        for n in range(len(every))
    ]


def _registered_values(campaign: Campaign, name: str, judgement: Judgement) -> np.ndarray | None:
    """Of the seeds that were registered, though another claim may have added some to a run."""
    values = campaign.values(judgement.how, judgement.effect)
    seeds = campaign.registered_as(name, judgement).get("seeds")
    return values if values is None else values[:seeds]


def _measured(values: np.ndarray | None, judgement: Judgement, campaign: Campaign) -> Measured:
    learned = values is None or campaign.learned(judgement, len(values))
    return Measured(values, judgement.predicted, learned)


def _unless_too_small(campaign: Campaign, finding: Finding) -> Finding:
    if campaign.scale.judges:
        return finding
    return finding._replace(verdict="undecided", reason="runs of this scale judge nothing")


def verdict_rows(found: list[Judged]) -> list[dict[str, Any]]:
    """One plain dictionary for each judgement."""
    return [_row(one) for one in found]


def is_changed(one: Judged) -> bool:
    """Whether a registered claim is another one now, at other rates, or in other families."""
    about = one.campaign.registered.get(one.name)
    if about is None:
        return False
    how, held = one.judgement.how, one.campaign.registered_as(one.name, one.judgement)
    rates = {
        str(reading.arm): one.campaign.chosen_rate(how, reading.arm)
        for _, reading in one.judgement.effect.terms
    }
    families = [one.campaign.families[primary]._asdict() for primary in (True, False)]
    is_other = about["hash"] != digest_of(one.campaign, one.claim)
    is_other |= [about["primary"], about["exploratory"]] != families
    return is_other or held.get("learning_rates", rates) != rates


def _row(one: Judged) -> dict[str, Any]:
    finding, judgement = one.finding, one.judgement
    held = one.campaign.registered_as(one.name, judgement)
    about = one.campaign.registered.get(one.name, {})
    return {
        "claim": one.name,
        "paper": one.claim.paper,
        "world": one.campaign.scale.world,
        "judgement": f"{judgement.how}: {judgement.prediction}",
        "primary": judgement.primary,
        "predicted": str(judgement.predicted),
        "effect": number(finding.mean),
        "low": number(finding.low),
        "high": number(finding.high),
        "values": None if one.values is None else [number(float(v)) for v in one.values],
        "skewness": skewness(one.values),
        "p_value": finding.p_value,
        "corrected": finding.corrected,
        "verdict": finding.verdict,
        "reason": finding.reason,
        "registered": about.get("hash"),
        "changed_since": is_changed(one),
        "registered_late": bool(about) and is_late(one.campaign, one.name),
        "resolution": judgement.predicted.resolution,
        "spread": one.campaign.spread(judgement),
        "power": held.get("power"),
        "needed_seeds": held.get("needed_seeds"),
        "runs": [
            {"run": run.folder.name, "rate": run.config.train.learning_rate}
            for run in runs_of(one.campaign, judgement)
        ],
    }


def runs_of(campaign: Campaign, judgement: Judgement) -> Iterator[Any]:
    """The runs that a judgement reads, each once."""
    arms = dict.fromkeys(reading.arm for _, reading in judgement.effect.terms)
    found = (campaign.run_of(judgement.how, arm) for arm in arms)
    return (run for run in found if run is not None)


def skewness(values: np.ndarray | None) -> float | None:
    """Of the values of the seeds, corrected for their number; None of fewer than 3, or alike."""
    if values is None or len(values) < 3 or not np.all(np.isfinite(values)) or not np.ptp(values):
        return None
    return float(stats.skew(values, bias=False))


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def differences_from(path: Path, campaigns: dict[str, Campaign]) -> list[str]:
    """A line for each number of a verdicts.json that is not what the run folders give."""
    held, now = (
        {f"{row['claim']}, {row['judgement']}": row for row in rows}
        for rows in (read_json(path), verdict_rows(judged(campaigns)))
    )
    lines = []
    for where in dict.fromkeys([*held, *now]):
        if where in held and where in now:
            lines += _differing(where, held[where], now[where], "the run folders give")
        else:
            lines.append(
                f"{where}: {'no such judgement is left' if where in held else 'is missing'}"
            )
    for campaign in campaigns.values():
        known = {n: claim for n, claim in campaign.claims.items() if n in campaign.registered}
        for name, claim in known.items():
            for judgement in claim.judgements:
                said = campaign.registered_as(name, judgement)
                again = registration_of(campaign, judgement, said.get("seeds"))
                where = f"{name}, {judgement.how}: {judgement.prediction}, as registered"
                lines += _differing(where, said, again, "the pilot gives")
    return lines


def _differing(
    where: str, before: dict[str, Any], after: dict[str, Any], who: str
) -> Iterator[str]:
    for key in dict.fromkeys([*before, *after]):
        if not _same(before.get(key), after.get(key)):
            yield f"{where}: {key} is {before.get(key)}, {who} {after.get(key)}"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b
