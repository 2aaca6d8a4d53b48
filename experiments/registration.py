"""What was predicted, written down before the first run that is judged: registered.json."""

import calendar
import hashlib
import time
from pathlib import Path
from typing import Any

from experiments.campaign import Campaign
from experiments.claim import Claim, Judgement
from experiments.power import needed_seeds, power
from experiments.runs import CONFIG
from icl_align.config import ConfigError
from icl_align.running.files import DamagedFileError, read_json, write_json

FILE = "registered.json"
WHEN = "%Y-%m-%d %H:%M:%S UTC"
LATE_SECONDS = 1  # to which `WHEN` is exact


def read_registered(folder: Path) -> dict[str, Any]:
    """Name of a claim -> what was written down of it.

    Raises:
      ConfigError: that file is damaged.
    """
    try:
        return read_json(folder / FILE)
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        raise ConfigError("folder", folder, f"{error}; put the file back") from error


def register(campaign: Campaign) -> None:
    """Writes down what is predicted of each claim, with the pilot's spread, the seeds and the
    power they give; what is written already stays.
    """
    campaign.registered = read_registered(campaign.folder)
    new = {
        name: _registration(campaign, claim)
        for name, claim in campaign.claims.items()
        if name not in campaign.registered
    }
    if new:
        campaign.registered |= new
        write_json(campaign.folder / FILE, campaign.registered)


def _registration(campaign: Campaign, claim: Claim) -> dict[str, Any]:
    learned, families = campaign.scale.learned, campaign.families
    return {
        "hash": digest_of(campaign, claim),
        "written": time.strftime(WHEN, time.gmtime()),
        "sentence": claim.sentence,
        "place": claim.place,
        "base": list(campaign.overrides),
        "learned": learned.words if learned else None,
        "primary": families[True]._asdict(),
        "exploratory": families[False]._asdict(),
        "judgements": [registration_of(campaign, one) for one in claim.judgements],
    }


def registration_of(
    campaign: Campaign, judgement: Judgement, most_seeds: int | None = None
) -> dict[str, Any]:
    """What is written down of a judgement.

    Args:
      campaign: whose pilot is finished.
      judgement: which.
      most_seeds: of a run that has more, because another claim asks for them; None is all.
    """
    predicted, family = judgement.predicted, campaign.families[judgement.primary]
    arms = dict.fromkeys(reading.arm for _, reading in judgement.effect.terms)
    runs = [campaign.places[campaign.judged_place(judgement.how, arm)] for arm in arms]
    seeds, spread = min(run.config.num_seeds for run in runs), campaign.spread(judgement)
    seeds = min(seeds, most_seeds or seeds)
    return {
        "how": judgement.how,
        "prediction": judgement.prediction,
        "primary": judgement.primary,
        "effect": str(judgement.effect),
        "predicted": str(predicted),
        "resolution": predicted.resolution,
        "learning_rates": {str(arm): campaign.chosen_rate(judgement.how, arm) for arm in arms},
        "spread": spread,
        "seeds": seeds,
        "power": None if spread is None else power(spread, seeds, predicted, family),
        "needed_seeds": None if spread is None else needed_seeds(spread, predicted, family),
    }


def digest_of(campaign: Campaign, claim: Claim) -> str:
    """A hash of all that a claim predicts, and of the sizes at which it is judged."""
    scale = campaign.scale
    sizes = campaign.overrides, scale.learning_rates, scale.learning_rate, scale.learned
    pinned = claim.sentence, claim.judgements, sizes, scale.seeds
    return hashlib.sha256(repr(pinned).encode()).hexdigest()[:16]


def is_late(campaign: Campaign, name: str) -> bool:
    """Whether a run by which a registered claim is judged was begun before it was registered."""
    written = calendar.timegm(time.strptime(campaign.registered[name]["written"], WHEN))
    judged = [(j.how, r.arm) for j in campaign.claims[name].judgements for _, r in j.effect.terms]
    arms = dict.fromkeys(judged)
    runs = [run for how, arm in arms if (run := campaign.run_of(how, arm)) is not None]
    return any((run.folder / CONFIG).stat().st_mtime < written - LATE_SECONDS for run in runs)
