"""Runs the claims and writes the report.

python -m experiments                                   lists the claims
python -m experiments NAME... [KEY=VALUE ...]           runs what is missing, then judges
python -m experiments all [KEY=VALUE ...]               all claims
python -m experiments NAME... -m hydra/launcher=ENGINE  the same jobs on another engine
"""

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import Optional

from experiments.alignment import SCALES
from experiments.claims import NAMES, load
from icl_align.config import ConfigError, WandbConfig, option
from icl_align.running.cli import MULTIRUN, check_engines
from icl_align.running.command import show
from icl_align.running.compose import parse_overrides, read_options
from icl_align.running.errors import RunError, one_line_errors
from icl_align.running.help import options_help


@dataclasses.dataclass
class CampaignOptions:
    """All options of `python -m experiments`."""

    scale: str = option("small", "size of every run", choices=tuple(SCALES))
    folder: Optional[str] = option(None, "the campaign's folder; null is campaigns/SCALE")
    seed: int = option(100, "first training seed", least=0, most=2**31 - 2**16)
    num_seeds: int = option(5, "training seeds; fewer than 5 decide nothing", least=1, most=2**10)
    networks_at_once: int = option(
        16, "most networks (configurations x seeds) that one job trains together", least=1
    )
    wandb: WandbConfig = dataclasses.field(default_factory=WandbConfig)


def check_names(names: list[str]) -> tuple[str, ...]:
    """The claims asked for, in the report's order.

    Raises:
      ConfigError: there is no such claim.
    """
    for name in names:
        if name not in (*NAMES, "all"):
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError("claim", name, f"must be all or some of {', '.join(NAMES)}{hint}")
    return NAMES if "all" in names else tuple(name for name in NAMES if name in names)


def list_claims() -> None:
    """Prints each claim with its place and what is judged."""
    lines = []
    for name in NAMES:
        claim = load(name, SCALES["small"])
        lines += [f"{name:<18} {claim.sentence}", f"{'':<18} {claim.place}"]
        lines += [f"{'':<18} - {one.how}: {one.prediction}" for one in claim.judgements]
    usage = __doc__.strip().partition("\n")[2].strip()
    show("\n".join([*lines, "", usage, "--help lists the options"]))


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m experiments`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(CampaignOptions)]))
        return
    if not arguments:
        list_claims()
        return
    with one_line_errors():
        swept = bool(MULTIRUN & set(arguments))
        engine = [text for text in arguments if text.lstrip("+~").startswith("hydra")]
        own = [text for text in arguments if "=" in text and text not in engine]
        names = [text for text in arguments if "=" not in text and text not in MULTIRUN]
        if not names:
            raise ConfigError("claim", "", f"name some of {', '.join(NAMES)}, or all")
        names = check_names(names)
        parsed = parse_overrides(engine)
        check_engines(parsed, sweeps=swept)
        for override in parsed:
            if override.key_or_group.startswith(("hydra/sweeper", "hydra.sweeper")):
                text = override.input_line.partition("=")[2]
                raise ConfigError(
                    override.key_or_group, text, "a campaign says itself what it runs"
                )
        options = read_options(CampaignOptions, own)
        # The report says what was computed, not where.
        said = [text for text in own if not text.startswith(("folder=", "wandb."))]
        said += ["-m", *engine] if swept else []
        which = ["all"] if names == NAMES else names
        command = " ".join(["python -m experiments", *which, *said])
        try:
            status = run_campaign(names, options, command, engine if swept else None)
        except KeyboardInterrupt:
            raise RunError("stopped; the same command goes on from there", 130) from None
    sys.exit(status)


def run_campaign(
    names: tuple[str, ...],
    options: CampaignOptions,
    command: str,
    engine: list[str] | None,
) -> int:
    """Runs what is missing and writes the report; returns the exit status.

    The report is of the claims named, and of those that are finished already.

    Args:
      names: the claims.
      options: see `CampaignOptions`.
      command: what was typed, for the report.
      engine: Hydra overrides that choose a launcher; None runs one job after the other.
    """
    from experiments.campaign import Campaign
    from experiments.engine import run_jobs
    from experiments.report import write_report
    from icl_align.running.run_folder import sole_user_of
    from icl_align.running.tracking import check_account

    check_account(options.wandb)
    scale = SCALES[options.scale]
    folder = Path(options.folder or f"campaigns/{options.scale}").absolute()
    every = {name: load(name, scale) for name in NAMES}

    def campaign_of(wanted):
        claims = {name: every[name] for name in wanted}
        return Campaign(claims, scale, folder, options.seed, options.num_seeds, options.wandb)

    with sole_user_of(folder):
        campaign = campaign_of(names)
        campaign.register(every)
        failed = run_jobs(campaign, campaign.missing_jobs(options.networks_at_once), engine)
        done = [n for n in NAMES if n in names or not campaign_of([n]).missing_jobs(1)]
        page = write_report(campaign_of(done), options.wandb, command, every)
    print(f"report: {page}")
    if failed:
        sys.stderr.write(
            f"icl_align: error: {len(failed)} jobs are not finished; the same command goes on\n"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    main()
