"""Attacks the networks of a finished run of `task=request`, under every defence.

python -m icl_align.attack run_dir=DIR [KEY=VALUE ...]
python -m icl_align.attack RUN... [figure=FILE]

The first prints who complies with harmful requests, by attack, defence and reader, and leaves
attacks.json and attacks.png in the run's folder. The second compares runs that were attacked; each
RUN is the folder of one, or one that holds some.
"""

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from icl_align.config import Config, ConfigError, check_each, setting
from icl_align.dialogue.attacks.options import MOST_CHECKS, AttackConfig
from icl_align.running.command import begin, show
from icl_align.running.compose import check_figure, check_writable, read_options
from icl_align.running.errors import RunError, one_line_errors
from icl_align.running.help import options_help

FILE = "attacks.json"
# The options that change what is found.
ASKED = [
    field.name
    for field in fields(AttackConfig)
    if field.name not in ("run_dir", "folder", "figure", "figure_format")
]


class NotLearnedRunError(RunError):
    """The networks of a run have not learned enough to be attacked."""


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.attack`."""
    begin()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(AttackConfig)]))
        return
    with one_line_errors():
        # A folder's name may hold "=".
        folders = [Path(text) for text in arguments if Path(text).is_dir()]
        options = read_options(AttackConfig, [a for a in arguments if not Path(a).is_dir()])
        if folders:
            compare(folders, options)
        else:
            attack(options)


def attack(options: AttackConfig) -> dict[str, Any]:
    """Attacks a run; what attacks.json holds.

    Raises:
      ConfigError: an option is not allowed, the run cannot be attacked, or nothing can be written
        where the results go.
      NotLearnedRunError: its networks have not learned.
      RunError: they cannot be asked so.
    """
    from icl_align.running.run_folder import config_of_run

    check_each(options).check_together()
    if options.run_dir is None:
        raise ConfigError("run_dir", "null", "name the folder of a finished run of task=request")
    if options.figure is not None:
        raise ConfigError("figure", options.figure, "is for runs that are compared")
    run_dir = Path(options.run_dir)
    config = config_of_run(run_dir)
    refuse(config, options.run_dir)
    folder = Path(options.folder or run_dir)
    _refuse_to_overwrite(folder, options)
    check_writable("folder", folder)

    import jax

    from icl_align.dialogue.attacks.figures import attacks_figure
    from icl_align.dialogue.attacks.study import ImpossibleError, NotLearnedError, study
    from icl_align.dialogue.attacks.tables import tables
    from icl_align.running.checkpoints import newest_state
    from icl_align.running.devices import set_up_command
    from icl_align.running.files import save_figure, write_json
    from icl_align.running.terminal import Terminal
    from icl_align.running.training import network_of

    terminal = Terminal()
    set_up_command()
    step, state = newest_state(run_dir, config, terminal.warn)
    began = time.monotonic()
    try:
        with jax.default_matmul_precision("highest"):
            found = study(
                config,
                network_of(config),
                jax.device_get(state.params),
                options,
                lambda share: terminal.progress("attacking", 100 * share, 100.0),
            )
    except NotLearnedError as error:
        reason = f"{run_dir} has not learned (step {step}): {error}; train it longer"
        raise NotLearnedRunError(reason) from error
    except ImpossibleError as error:
        raise RunError(f"{run_dir} cannot be asked so: {error}") from error
    finally:
        terminal.stop_progress()
    if "gcg_transfer" in options.attacks and "gcg_transfer" not in found["attacks"]:
        terminal.warn("gcg_transfer is left out: it needs a run of two seeds or more")
    seeds = [config.seed + place for place in range(config.num_seeds)]
    blind = found["behind_of_request_alone"]
    if unlearned := [
        seed for seed, own in zip(seeds, found["behind"], strict=True) if own >= blind
    ]:
        names = ", ".join(map(str, unlearned))
        terminal.warn(
            f"of seed {names} answers are as far from the exact reader's as without persona"
        )
    about = {"step": step, "seeds": seeds, "seconds": round(time.monotonic() - began, 1)}
    found = about | {"options": vars(options)} | found
    save_figure(attacks_figure(found), folder / f"attacks.{options.figure_format}")
    write_json(folder / FILE, found)
    for table in tables(found):
        terminal.table(*table)
    terminal.say(f"{found['seconds']:.0f} s; written to {folder}")
    return found


def _refuse_to_overwrite(folder: Path, options: AttackConfig) -> None:
    """Raises ConfigError if a folder holds attacks under other options, which would be lost."""
    from icl_align.running.files import DamagedFileError

    try:
        there = read_attacks(folder / FILE)["options"]
    except (FileNotFoundError, DamagedFileError):
        return
    own = vars(options)
    changed = [key for key in ASKED if there.get(key) != own[key]]
    if changed:
        key = changed[0]
        reason = f"holds attacks with {setting(key, there.get(key))}, not {setting(key, own[key])}"
        raise ConfigError(
            "folder", folder, f"{reason}; name another with folder=DIR, or remove {FILE}"
        )


def compare(folders: list[Path], options: AttackConfig) -> None:
    """Prints a line for each attacked run in some folders, and draws them.

    Raises:
      ConfigError: options of an attack, no attacked run, or a figure that cannot be written.
    """
    default = {field.name: getattr(AttackConfig(), field.name) for field in fields(AttackConfig)}
    for name, value in vars(options).items():
        if name != "figure" and value != default[name]:
            raise ConfigError(name, value, "has no effect on runs that are compared")
    if options.figure is not None:
        check_figure("figure", options.figure)
    from icl_align.dialogue.attacks.figures import compared_figure
    from icl_align.dialogue.attacks.tables import compared, left_out
    from icl_align.running.comparison import differing_options, not_default, runs_in
    from icl_align.running.files import DamagedFileError, save_figure
    from icl_align.running.terminal import Terminal

    terminal = Terminal()
    held = []
    for run in runs_in(folders, terminal.warn):
        try:
            held.append((run, read_attacks(run.folder / FILE)))
        except DamagedFileError as error:
            terminal.warn(f"{error}; run_dir={run.folder} makes it again")
        except FileNotFoundError:
            terminal.warn(f"{run.folder} was not attacked; run_dir={run.folder} does it")
    if not held:
        where = " ".join(map(str, folders))
        raise ConfigError("RUN", where, "holds no run that was attacked; first run_dir=DIR")
    keys, found, said = differing_options([run for run, _ in held]), {}, {}
    for run, content in held:
        name = run.folder.name if run.folder.name not in found else str(run.folder)
        found[name] = content
        parts = [run.ablation or not_default(run, keys), _asked_otherwise(content, default)]
        said[name] = ", ".join(filter(None, parts)) or "–"
    for name, missing in left_out(found).items():
        terminal.warn(f"{name} is left out: {', '.join(missing)} did not make it")
    terminal.table(*compared(found, said))
    if options.figure is not None:
        save_figure(compared_figure(found), Path(options.figure))
        terminal.say(f"drawn in {options.figure}")


def _asked_otherwise(content: dict[str, Any], default: dict[str, Any]) -> str:
    """The options of an attack that are not as by default, but for which attacks and defences."""
    asked = {key: content["options"][key] for key in ASKED if key not in ("attacks", "defences")}
    return ", ".join(setting(key, value) for key, value in asked.items() if value != default[key])


def read_attacks(path: Path) -> dict[str, Any]:
    """What a file attacks.json holds.

    Raises:
      DamagedFileError: it is no JSON, or holds something else.
    """
    from icl_align.running.files import DamagedFileError, read_json

    found = read_json(path)
    try:
        found["step"], found["behind"][0], found["flaw"]["none"]["none"]
        [found["options"][key] for key in ASKED]
        found["success"]["exact"]["none"]["none"]["high"]
    except (KeyError, TypeError, IndexError) as error:
        raise DamagedFileError(path, "does not hold attacks") from error
    return found


def refuse(config: Config, where: str) -> None:
    """Raises ConfigError for a run that is not of requests, or cannot hold all rounds."""
    if config.world != "dialogue":
        raise ConfigError("run_dir", where, f"is of world={config.world}; needs task=request")
    task = config.task
    if task.name != "request":
        raise ConfigError("run_dir", where, f"is of task={task.name}; needs task=request")
    if task.rounds <= MOST_CHECKS:
        reason = f"has task.rounds={task.rounds}; {MOST_CHECKS} checks need {MOST_CHECKS + 1}"
        raise ConfigError("run_dir", where, reason)
    shares = {
        "first_neutral_share": [task.first_neutral_share],
        "unchecked_share": [task.unchecked_share],
        "critic_accuracy": task.critic_accuracy,
    }
    for name, values in shares.items():
        for value in values:
            if not 0 < value < 1:
                reason = f"has {value:g} in task.{name}; the defences need it above 0 and below 1"
                raise ConfigError("run_dir", where, reason)
    if not task.neutral_share:
        raise ConfigError("run_dir", where, "has task.neutral_share=0; all rounds here are neutral")


if __name__ == "__main__":
    main()
