"""A finished run's own rounds: its answers become its next attempts, rewarded by a critic.

python -m icl_align.rounds run_dir=DIR [output_dir=DIR] [figure=FILE] [KEY=VALUE ...]
python -m icl_align.rounds RUN... [figure=FILE]

The first prints what every learner makes of its own rounds, and what the transformer gains under
many critics; it leaves own_rounds.json and own_rounds.png in the run's folder, or with options in a
folder under DIR/evaluations/. The second compares runs that were so examined; each RUN is the
folder of one, or one that holds some.

Options are those of the evaluation, such as
  evaluation.own_rounds=R         how many rounds; by default as many as the contexts have room for
  own_rounds.given_attempts=N     attempts that are given before them
  own_rounds.critic=NAME          share, distance, direction or learned
  own_rounds.critic_noise=P       and critic_power, critic_bias, critic_clipped, scale
All of them: python -m icl_align.train --help.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from icl_align.config import Config, ConfigError, check, with_values
from icl_align.running.command import begin, show
from icl_align.running.compose import check_figure, check_writable
from icl_align.running.errors import one_line_errors

PATHS = ("run_dir", "output_dir", "figure")
# Change nothing that is compared, or are seen in it.
UNTOLD = ("train.checkpoint_every", "train.keep_checkpoints", "evaluation.own_rounds")


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.rounds`."""
    begin()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        show(__doc__.strip())
        return
    with one_line_errors():
        folders = [Path(text) for text in arguments if Path(text).is_dir()]
        paths: dict[str, Path | None] = dict.fromkeys(PATHS)
        overrides = []
        for argument in (a for a in arguments if not Path(a).is_dir()):
            key, equals, text = argument.partition("=")
            if not equals:
                raise ConfigError("RUN", argument, "there is no such folder")
            if key in paths:
                paths[key] = Path(text)
            else:
                overrides.append(argument)
        if paths["figure"] is not None:
            check_figure("figure", str(paths["figure"]))
        if folders:
            for key in ("run_dir", "output_dir"):
                if paths[key] is not None:
                    raise ConfigError(key, paths[key], "has no effect on runs that are compared")
            if overrides:
                key, _, value = overrides[0].partition("=")
                raise ConfigError(key, value, "has no effect on runs that are compared")
            compare(folders, paths["figure"])
        elif paths["run_dir"] is None:
            raise ConfigError("run_dir", "null", "name the folder of a finished run")
        else:
            examine(overrides=overrides, **paths)


def examine(
    run_dir: Path,
    overrides: list[str] | None = None,
    output_dir: Path | None = None,
    figure: Path | None = None,
) -> dict[str, Any]:
    """The own rounds of a run; what own_rounds.json holds.

    Args:
      run_dir: the run's folder.
      overrides: of options that have to do with evaluation.
      output_dir: where the results go instead.
      figure: another file for the picture.

    Raises:
      ConfigError: an option is not allowed, the folder holds no run of this world, or nothing can
        be written where the results go.
    """
    from icl_align.running.reevaluation import evaluation_config, results_folder
    from icl_align.running.run_folder import config_of_run

    overrides, trained = list(overrides or []), config_of_run(run_dir)
    if trained.measures.study != "own_rounds":
        raise ConfigError("run_dir", run_dir, f"is of world={trained.world}; needs alignment")
    config = _with_rounds(evaluation_config(trained, overrides), trained, overrides)
    from icl_align.alignment.rounds.tables import tables
    from icl_align.running.checkpoints import newest_state
    from icl_align.running.devices import set_up_command
    from icl_align.running.files import save_figure
    from icl_align.running.study import leave_study, make_study
    from icl_align.running.terminal import Terminal
    from icl_align.world import world_of

    terminal = Terminal()
    set_up_command()
    step, state = newest_state(run_dir, trained, terminal.warn)
    folder = results_folder(run_dir, trained, overrides, step, output_dir)
    check_writable("output_dir", folder)
    try:
        found = make_study(
            config,
            step,
            state.params,
            run_dir,
            lambda share: terminal.progress("own rounds", 100 * share, 100.0),
            terminal.warn,
        )
    finally:
        terminal.stop_progress()
    folder.mkdir(parents=True, exist_ok=True)
    leave_study(config, folder, found)
    if figure is not None:
        save_figure(world_of(config).study_figure(config, found), figure)
        terminal.say(f"drawn in {figure}")
    for table in tables(found):
        terminal.table(*table)
    terminal.say(f"written to {folder}")
    return found


def _with_rounds(config: Config, trained: Config, overrides: list[str]) -> Config:
    """With as many rounds as the contexts have room for, unless some are asked for.

    Learned positions are trained as far as the last prediction is.
    """
    given, rounds = config.own_rounds.given_attempts, config.evaluation.own_rounds
    if rounds:
        return config
    if any(text.partition("=")[0] == "evaluation.own_rounds" for text in overrides):
        raise ConfigError("evaluation.own_rounds", 0, "must be at least 1")
    attempts = config.task.num_responses
    if config.model.positions:
        attempts = min(attempts, trained.last_attempts)
    if given >= attempts:
        most = f"must be below {attempts}, the attempts that contexts have room for"
        raise ConfigError("own_rounds.given_attempts", given, most)
    return check(with_values(config, {"evaluation.own_rounds": attempts - given}), trained)


def compare(folders: list[Path], figure: Path | None = None) -> None:
    """Prints a line for each examined run in some folders, and how gains go with accuracy in all.

    Raises:
      ConfigError: no run was examined.
    """
    from icl_align.alignment.rounds.figures import compared_figure
    from icl_align.alignment.rounds.tables import compared
    from icl_align.running.comparison import Compared, differing_options, not_default
    from icl_align.running.files import save_figure
    from icl_align.running.terminal import Terminal

    terminal = Terminal()
    held = [one for folder in folders for one in _examined(folder, terminal.warn)]
    if not held:
        where = " ".join(map(str, folders))
        raise ConfigError("RUN", where, "holds no run that was examined; first run_dir=DIR")
    runs = [Compared(folder, config, "", None) for folder, config, _ in held]
    keys, found = [key for key in differing_options(runs) if key not in UNTOLD], {}
    for run, (folder, _, content) in zip(runs, held, strict=True):
        name = not_default(run, keys) or ("default" if keys else folder.name)
        found[name if name not in found else str(folder)] = content
    for table in compared(found):
        terminal.table(*table)
    if figure is not None:
        save_figure(compared_figure(found), figure)
        terminal.say(f"drawn in {figure}")


def _examined(
    folder: Path, warn: Callable[[str], None]
) -> Iterator[tuple[Path, Config, dict[str, Any]]]:
    """Folder, options and content of each own_rounds.json in a folder and below it."""
    from icl_align.running.files import DamagedFileError, read_json
    from icl_align.running.run_folder import EVALUATIONS, from_dict, saved_config

    for path in sorted(folder.rglob("own_rounds.json")):
        own = path.parent
        config = saved_config(own.parent.parent if own.parent.name == EVALUATIONS else own)
        try:
            found = read_json(path)
            found["learners"]["transformer"]["gain"]["mean"], found["critics"], found["step"]
            options = found["options"]
        except (DamagedFileError, KeyError, TypeError):
            warn(f"{path} is damaged and left out")
            continue
        if config is None:
            warn(f"{path} belongs to no run and is left out")
            continue
        yield own, from_dict(dataclasses.asdict(config) | options), found


if __name__ == "__main__":
    main()
