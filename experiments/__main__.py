"""Runs the claims and writes the report.

python -m experiments                                   lists the claims
python -m experiments NAME... [KEY=VALUE ...]           runs what is missing, then judges
python -m experiments all [KEY=VALUE ...]               all claims of both papers
python -m experiments NAME... -m hydra/launcher=ENGINE  the same jobs on another engine
python -m experiments check [KEY=VALUE ...]             computes all verdicts anew from the runs
python -m experiments pack [KEY=VALUE ...]              all that the report stands on, in one file
python -m experiments simulate [KEY=VALUE ...]          how often the judge errs, by simulation
"""

import contextlib
import difflib
import os
import sys
from typing import TYPE_CHECKING

from experiments.claim import PAPERS, Claim, Scale
from experiments.options import SEEDS_FILE, CampaignOptions, folder_of, keep_seeds, take_seeds
from experiments.studies import studies
from icl_align.config import ConfigError, setting
from icl_align.running.cli import MULTIRUN, check_engines
from icl_align.running.command import show
from icl_align.running.compose import parse_overrides, read_options
from icl_align.running.errors import RunError, one_line_errors
from icl_align.running.help import options_help

if TYPE_CHECKING:
    from experiments.campaign import Campaign
    from experiments.judge import Family


def check_names(names: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The claims asked for among those that are known, in the report's order.

    Raises:
      ConfigError: there is no such claim.
    """
    for name in names:
        if name not in (*known, "all"):
            close = difflib.get_close_matches(name, (*known, *COMMANDS), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError("claim", name, f"must be all or some of {', '.join(known)}{hint}")
    return known if "all" in names else tuple(name for name in known if name in names)


def load_all(scales: dict[str, Scale]) -> dict[str, dict[str, Claim]]:
    """World -> name -> claim, of all claims there are."""
    every = studies()
    return {
        world: {
            name: every[world].load(name, scale)
            for names in every[world].CLAIMS.values()
            for name in names
        }
        for world, scale in scales.items()
    }


def list_claims(claims: dict[str, dict[str, Claim]]) -> None:
    """Prints each claim with its place and what is judged."""
    lines = []
    for paper, title in PAPERS.items():
        own = {n: c for of in claims.values() for n, c in of.items() if c.paper == paper}
        lines += [title, ""] if own else []
        for name, claim in own.items():
            lines += [f"{name:<18} {claim.sentence}", f"{'':<18} {claim.place}"]
            lines += [
                f"{'':<18} {'*' if one.primary else '-'} {one.how}: {one.prediction}"
                for one in claim.judgements
            ]
        lines += [""] if own else []
    usage = __doc__.strip().partition("\n")[2].strip()
    show("\n".join([*lines, "* primary", "", usage, "--help lists the options"]))


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m experiments`."""
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever is said for other programs
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(CampaignOptions)]))
        return
    with one_line_errors():
        swept = bool(MULTIRUN & set(arguments))
        engine = [text for text in arguments if text.lstrip("+~").startswith("hydra")]
        own = [text for text in arguments if "=" in text and text not in engine]
        names = [text for text in arguments if "=" not in text and text not in MULTIRUN]
        options = read_options(CampaignOptions, own)
        scales = options.scales()
        every = load_all(scales)
        # What is reported and corrected for does not depend on which are asked for.
        asked = {w: own for w, own in every.items() if options.world in (None, w)}
        if all(argument.startswith("world=") for argument in arguments):
            list_claims(asked)
            return
        known = tuple(name for of_world in asked.values() for name in of_world)
        if not names:
            raise ConfigError("claim", "", f"name some of {', '.join(known)}, or all")
        parsed = parse_overrides(engine)
        check_engines(parsed, sweeps=swept)
        for override in parsed:
            if override.key_or_group.startswith(("hydra/sweeper", "hydra.sweeper")):
                text = override.input_line.partition("=")[2]
                raise ConfigError(
                    override.key_or_group, text, "a campaign says itself what it runs"
                )
        if swept and options.jobs_at_once is not None:
            reason = "has no effect with -m; a launcher has its own, such as hydra.launcher.n_jobs"
            raise ConfigError("jobs_at_once", options.jobs_at_once, reason)
        asks = next((name for name in names if name in COMMANDS), None)
        if asks and (len(names) > 1 or swept or options.world):
            extra = [text for text in arguments if text != asks and text in (*names, *MULTIRUN)]
            extra += [setting("world", options.world)] if options.world else []
            raise ConfigError("claim", " ".join(extra), f"{asks} is of all that the folder has")
        named = () if asks else check_names(names, known)
        # The report says what was computed, not where.
        said = [text for text in own if not text.startswith(("folder=", "wandb."))]
        said += ["-m", *engine] if swept else []
        which = ["all"] if named == known else named
        command = " ".join(["python -m experiments", *which, *said])
        try:
            if asks:
                status = COMMANDS[asks](every, scales, options)
            else:
                status = run_campaigns(
                    named, every, scales, options, command, engine if swept else None
                )
        except KeyboardInterrupt:
            raise RunError("stopped; the same command goes on from there", 130) from None
    sys.exit(status)


def families_of(every: dict[str, dict[str, Claim]]) -> dict[bool, "Family"]:
    """Of all judgements there are: what is corrected for does not depend on what is asked for."""
    from experiments.campaign import families

    return families(claim for own in every.values() for claim in own.values())


def campaigns_of(
    names: tuple[str, ...],
    every: dict[str, dict[str, Claim]],
    scales: dict[str, Scale],
    options: CampaignOptions,
    world: str | None = None,
) -> dict[str, "Campaign"]:
    """World -> the campaign of the claims named, and of those that were registered in the folder
    before, which share its grid; of one world only, if it is named.
    """
    from experiments.campaign import Campaign
    from experiments.registration import read_registered

    folder = folder_of(options)
    registered = read_registered(folder)
    held = {*names, *registered}
    wanted = {
        name: {n: claim for n, claim in own.items() if n in held}
        for name, own in every.items()
        if world in (None, name)
    }
    return {
        name: Campaign(own, scales[name], folder, options.wandb, families_of(every), registered)
        for name, own in wanted.items()
        if own
    }


def run_campaigns(
    names: tuple[str, ...],
    every: dict[str, dict[str, Claim]],
    scales: dict[str, Scale],
    options: CampaignOptions,
    command: str,
    engine: list[str] | None,
) -> int:
    """Runs what is missing, the pilot before what is judged, and writes the report; returns the
    exit status.

    The report is of the claims named, and of those that the folder has.

    Args:
      names: the claims.
      every: all claims there are.
      scales: of each world.
      options: of the command.
      command: what was typed, for the report.
      engine: Hydra overrides that choose a launcher; None is this machine.
    """
    from experiments.engine import run_jobs
    from experiments.registration import register
    from experiments.report import write_report
    from icl_align.running.run_folder import sole_user_of
    from icl_align.running.tracking import check_account

    folder = folder_of(options)
    check_account(options.wandb, folder)
    failed = []
    with sole_user_of(folder):
        keep_seeds(folder, options)
        for world, own in every.items():
            asked = tuple(name for name in own if name in names)
            while asked:
                campaign = campaigns_of(asked, every, scales, options, world)[world]
                if campaign.is_piloted:
                    register(campaign)
                jobs = campaign.missing_jobs(options.networks_at_once, asked)
                lost = run_jobs(campaign, jobs, engine)
                failed += lost
                if lost or not jobs:
                    break
        found = campaigns_of(names, every, scales, options)
        if not all(campaign.is_piloted for campaign in found.values()):
            # What was judged before stays so where the pilot of a claim newly named has failed.
            before = campaigns_of((), every, scales, options)
            found |= {world: own for world, own in before.items() if not found[world].is_piloted}
        page = write_report(found, options.wandb, command, options.figure_format)
    print(f"report: {page}")
    if failed:
        sys.stderr.write(
            f"icl_align: error: {len(failed)} jobs are not finished; the same command goes on\n"
        )
    return 1 if failed else 0


def check_report(
    every: dict[str, dict[str, Claim]], scales: dict[str, Scale], options: CampaignOptions
) -> int:
    """Computes every number of verdicts.json anew from the run folders; 1 if one differs.

    The seeds are those of the report, if no others are named.
    """
    from experiments.verdicts import differences_from
    from icl_align.running.files import DamagedFileError, read_json

    folder = folder_of(options)
    path = folder / "report" / "verdicts.json"
    try:
        held = read_json(folder / SEEDS_FILE)
        names = tuple({row["claim"] for row in read_json(path)})
    except FileNotFoundError:
        raise ConfigError("folder", folder, "holds no report; run some claims first") from None
    except DamagedFileError as error:
        raise ConfigError("folder", folder, str(error)) from error
    take_seeds(folder, held, options)
    scales = options.scales()
    differing = differences_from(path, campaigns_of(names, every, scales, options))
    for line in differing:
        sys.stderr.write(f"icl_align: {line}\n")
    if not differing:
        print(f"every number of {path} is that of the run folders")
    return 1 if differing else 0


def simulate_judge(
    every: dict[str, dict[str, Claim]], scales: dict[str, Scale], options: CampaignOptions
) -> int:
    """How often the judge errs on effects that lie on the ends of their ranges, at the seeds and
    the spreads that are registered in the folder, or else at those of the scale; and at the
    skewness that its report has found.
    """
    from experiments.campaign import registered_judgement
    from experiments.registration import read_registered
    from experiments.simulation import Case, simulate
    from icl_align.running.files import DamagedFileError, read_json

    folder, cases = folder_of(options), []
    registered = read_registered(folder)
    try:
        with contextlib.suppress(FileNotFoundError):
            take_seeds(folder, read_json(folder / SEEDS_FILE), options)
            scales = options.scales()
        try:
            rows = read_json(folder / "report" / "verdicts.json")
        except FileNotFoundError:
            rows = []  # nothing is judged yet
    except DamagedFileError as error:
        raise ConfigError("folder", folder, str(error)) from error
    found = {(row["claim"], row["judgement"]): row["skewness"] for row in rows}
    for world, own in every.items():
        for name, claim in own.items():
            for judgement in claim.judgements:
                held = registered_judgement(registered, name, judgement)
                seeds = held.get("seeds", scales[world].seeds.judged)
                spread = held.get("spread") or judgement.predicted.resolution
                skewness = found.get((name, f"{judgement.how}: {judgement.prediction}"))
                cases.append(Case(judgement.predicted, judgement.primary, seeds, spread, skewness))
    for line in simulate(cases, families_of(every)):
        print(line, flush=True)
    return 0


def pack_campaign(
    every: dict[str, dict[str, Claim]], scales: dict[str, Scale], options: CampaignOptions
) -> int:
    """Leaves the folder's results, without its networks, as one file beside it."""
    from experiments.pack import pack

    folder = folder_of(options)
    if not (folder / SEEDS_FILE).exists():
        raise ConfigError("folder", folder, "holds no campaign; run some claims first")
    print(f"packed: {pack(folder, (SEEDS_FILE, 'report/verdicts.json'))}")
    return 0


COMMANDS = {"check": check_report, "pack": pack_campaign, "simulate": simulate_judge}


if __name__ == "__main__":
    main()
