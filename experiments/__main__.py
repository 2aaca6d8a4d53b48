"""Runs the claims and writes the report.

python -m experiments [world=WORLD]                     lists the claims of a world
python -m experiments NAME... [KEY=VALUE ...]           runs what is missing, then judges
python -m experiments all [KEY=VALUE ...]               all claims
python -m experiments NAME... -m hydra/launcher=ENGINE  the same jobs on another engine
"""

import dataclasses
import difflib
import os
import sys
from pathlib import Path
from typing import Any, Optional

from experiments.studies import Study, study_of
from icl_align.config import FIGURE_FORMATS, ConfigError, WandbConfig, option
from icl_align.running.cli import MULTIRUN, check_engines
from icl_align.running.command import show
from icl_align.running.compose import DEFAULT_WORLD, parse_overrides, read_options, world_named
from icl_align.running.errors import RunError, one_line_errors
from icl_align.running.help import options_help
from icl_align.world import WORLDS


@dataclasses.dataclass
class CampaignOptions:
    """The options of `python -m experiments` that do not depend on the world."""

    folder: Optional[str] = option(
        None,
        "the campaign's folder; null is campaigns/SCALE, of another world than the default "
        "campaigns/WORLD/SCALE",
    )
    seed: int = option(100, "first training seed", least=0, most=2**31 - 2**16)
    num_seeds: int = option(5, "training seeds; fewer than 5 decide nothing", least=1, most=2**10)
    networks_at_once: int = option(
        16, "most networks (configurations x seeds) that one job trains together", least=1
    )
    figure_format: str = option(
        "png", "of the figures that the report leaves beside its own", choices=FIGURE_FORMATS
    )
    wandb: WandbConfig = dataclasses.field(default_factory=WandbConfig)


def campaign_options(world: str) -> type[CampaignOptions]:
    """All options for the claims of a world: those, and its sizes."""
    scale = option("small", "size of every run", choices=tuple(study_of(world).SCALES))
    named = option(world, "whose claims", choices=WORLDS)
    extra = [("scale", str, scale), ("world", str, named)]
    return dataclasses.make_dataclass("OptionsOfWorld", extra, bases=(CampaignOptions,))


def check_names(names: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The claims asked for among those that are known, in the report's order.

    Raises:
      ConfigError: there is no such claim.
    """
    for name in names:
        if name not in (*known, "all"):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError("claim", name, f"must be all or some of {', '.join(known)}{hint}")
    return known if "all" in names else tuple(name for name in known if name in names)


def list_claims(study: Study) -> None:
    """Prints each claim with its place and what is judged."""
    lines = []
    for name in study.CLAIMS:
        claim = study.load(name, study.SCALES["small"])
        lines += [f"{name:<18} {claim.sentence}", f"{'':<18} {claim.place}"]
        lines += [f"{'':<18} - {one.how}: {one.prediction}" for one in claim.judgements]
    usage = __doc__.strip().partition("\n")[2].strip()
    show("\n".join([*lines, "", usage, "--help lists the options"]))


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m experiments`."""
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever is said for other programs
    arguments = sys.argv[1:] if arguments is None else arguments
    with one_line_errors():
        world = world_named(arguments)
        study, schema = study_of(world), campaign_options(world)
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(schema)]))
        return
    if all(argument.startswith("world=") for argument in arguments):
        list_claims(study)
        return
    with one_line_errors():
        swept = bool(MULTIRUN & set(arguments))
        engine = [text for text in arguments if text.lstrip("+~").startswith("hydra")]
        own = [text for text in arguments if "=" in text and text not in engine]
        names = [text for text in arguments if "=" not in text and text not in MULTIRUN]
        if not names:
            raise ConfigError("claim", "", f"name some of {', '.join(study.CLAIMS)}, or all")
        names = check_names(names, study.CLAIMS)
        parsed = parse_overrides(engine)
        check_engines(parsed, sweeps=swept)
        for override in parsed:
            if override.key_or_group.startswith(("hydra/sweeper", "hydra.sweeper")):
                text = override.input_line.partition("=")[2]
                raise ConfigError(
                    override.key_or_group, text, "a campaign says itself what it runs"
                )
        options = read_options(schema, own)
        # The report says what was computed, not where.
        said = [text for text in own if not text.startswith(("folder=", "wandb."))]
        said += ["-m", *engine] if swept else []
        which = ["all"] if names == study.CLAIMS else names
        command = " ".join(["python -m experiments", *which, *said])
        try:
            status = run_campaign(names, options, command, engine if swept else None)
        except KeyboardInterrupt:
            raise RunError("stopped; the same command goes on from there", 130) from None
    sys.exit(status)


def run_campaign(
    names: tuple[str, ...],
    options: Any,
    command: str,
    engine: list[str] | None,
) -> int:
    """Runs what is missing and writes the report; returns the exit status.

    The report is of the claims named, and of those that are finished already.

    Args:
      names: the claims.
      options: see `campaign_options`.
      command: what was typed, for the report.
      engine: Hydra overrides that choose a launcher; None runs one job after the other.
    """
    from experiments.campaign import Campaign
    from experiments.engine import run_jobs
    from experiments.report import write_report
    from icl_align.running.run_folder import sole_user_of
    from icl_align.running.tracking import check_account

    study = study_of(options.world)
    scale = study.SCALES[options.scale]
    own = "" if options.world == DEFAULT_WORLD else f"{options.world}/"
    folder = Path(options.folder or f"campaigns/{own}{options.scale}").absolute()
    check_account(options.wandb, folder)
    every = {name: study.load(name, scale) for name in study.CLAIMS}

    def campaign_of(wanted):
        claims = {name: every[name] for name in wanted}
        return Campaign(claims, scale, folder, options.seed, options.num_seeds, options.wandb)

    with sole_user_of(folder):
        campaign = campaign_of(names)
        campaign.register(every)
        failed = run_jobs(campaign, campaign.missing_jobs(options.networks_at_once), engine)
        done = [n for n in study.CLAIMS if n in names or not campaign_of([n]).missing_jobs(1)]
        page = write_report(campaign_of(done), options.wandb, command, every, options.figure_format)
    print(f"report: {page}")
    if failed:
        sys.stderr.write(
            f"icl_align: error: {len(failed)} jobs are not finished; the same command goes on\n"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    main()
