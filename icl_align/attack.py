"""Attacks the networks of a finished run of `task=request`, under every defence.

python -m icl_align.attack run_dir=DIR [KEY=VALUE ...]

Prints who complies with harmful requests, by attack, defence and reader, and leaves attacks.json
and attacks.png in the run's folder.
"""

import sys
import time
from pathlib import Path
from typing import Any

from icl_align.config import Config, ConfigError
from icl_align.dialogue.attacks.options import MOST_CHECKS, AttackConfig
from icl_align.running.command import begin, show
from icl_align.running.compose import check_writable, read_options
from icl_align.running.errors import RunError, one_line_errors
from icl_align.running.help import options_help


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.attack`."""
    begin()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(AttackConfig)]))
        return
    with one_line_errors():
        options = read_options(AttackConfig, arguments)
        options.check_together()
        attack(options)


def attack(options: AttackConfig) -> dict[str, Any]:
    """Attacks a run; what attacks.json holds.

    Raises:
      ConfigError: the run cannot be attacked, or nothing can be written where the results go.
      RunError: its networks have not learned.
    """
    from icl_align.running.run_folder import config_of_run

    if options.run_dir is None:
        raise ConfigError("run_dir", "null", "name the folder of a finished run of task=request")
    run_dir = Path(options.run_dir)
    config = config_of_run(run_dir)
    refuse(config, options.run_dir)
    folder = Path(options.folder or run_dir)
    check_writable("folder", folder)

    import jax

    from icl_align.dialogue.attacks.figures import attacks_figure
    from icl_align.dialogue.attacks.study import NotLearnedError, study
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
        raise RunError(
            f"{run_dir} has not learned (step {step}): {error}; train it longer"
        ) from error
    finally:
        terminal.stop_progress()
    if "gcg_transfer" in options.attacks and "gcg_transfer" not in found["attacks"]:
        terminal.warn("gcg_transfer is left out: it needs a run of two seeds or more")
    seeds = [config.seed + place for place in range(config.num_seeds)]
    about = {"step": step, "seeds": seeds, "seconds": round(time.monotonic() - began, 1)}
    found = about | {"options": vars(options)} | found
    save_figure(attacks_figure(found), folder / f"attacks.{options.figure_format}")
    write_json(folder / "attacks.json", found)
    for table in tables(found):
        terminal.table(*table)
    terminal.say(f"{found['seconds']:.0f} s; written to {folder}")
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
    if not 0 < task.first_neutral_share < 1:
        raise ConfigError(
            "run_dir",
            where,
            f"has task.first_neutral_share={task.first_neutral_share:g}; asking with and without "
            "a reminder needs a share above 0 and below 1",
        )


if __name__ == "__main__":
    main()
