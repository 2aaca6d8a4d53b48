"""The command line of `icl_align.train`: checked as a whole, then run under Hydra.

Nothing here imports JAX, so that `--help` and a wrong option answer at once.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from icl_align.config import ConfigError
from icl_align.running.command import show
from icl_align.running.compose import (
    CONF,
    check_folder,
    compose_config,
    explain,
    in_order,
    is_for_hydra,
    parse_overrides,
    register_options,
    world_named,
)
from icl_align.running.errors import SIGNALLED, RunError, one_line_errors
from icl_align.running.help import help_text
from icl_align.running.new_folder import EXTEND, RUN, SWEEP, make_new_folder, quoted
from icl_align.running.signals import end_in_one_line

MULTIRUN = {"-m", "--multirun"}
# What Hydra's own parser reads.
HYDRA_FLAGS = MULTIRUN | {
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--resolve",
    "--package",
    "-p",
}
HYDRA_FLAGS |= {"--run", "-r", "--shell-completion", "-sc", "--experimental-rerun", "--info", "-i"}
HYDRA_FLAGS |= {"--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
# A plugin's own name for its launcher or sweeper -> the extra of this package that installs it.
EXTRAS = {
    "joblib": "joblib",
    "ray": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "optuna": "optuna",
}
MOST_CHECKED_JOBS = 64  # of a sweep; composing takes some 50 ms


def check_command_line(arguments: list[str]) -> None:
    """Composes and checks every job of a command line before Hydra makes any folder.

    Raises:
      ConfigError: for the first job that cannot run.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    flags = {argument for argument in arguments if argument.startswith("-")}
    _check_flags(flags)
    if not flags <= MULTIRUN:
        return  # another config folder or one of Hydra's own questions: Hydra answers
    parsed = parse_overrides(overrides)
    check_engines(parsed, sweeps=bool(flags))
    searches = any(override.key_or_group == "hydra/sweeper" for override in parsed)
    for override in parsed:
        text = override.input_line.partition("=")[2]
        if override.is_sweep_override() and not flags:
            raise ConfigError(override.key_or_group, text, "sweeps need -m")
        if override.is_interval_sweep() and not searches:
            reason = "a range is for a search: hydra/sweeper=learning_rate"
            raise ConfigError(override.key_or_group, text, reason)
    parsed = [override for override in parsed if not override.is_interval_sweep()]
    for job in itertools.islice(_jobs(parsed), MOST_CHECKED_JOBS):
        compose_config(job)
    for override in parsed:
        if override.key_or_group in (RUN, SWEEP):
            check_folder(override.key_or_group, str(override.value()))


def _check_flags(flags: set[str]) -> None:
    """Raises ConfigError for a flag that neither this command nor Hydra has."""
    for flag in sorted(flags):
        name = flag.partition("=")[0]
        if name not in HYDRA_FLAGS:
            key = name.lstrip("-").replace("-", "_")
            raise ConfigError(flag, "", f"options are written KEY=VALUE, as in {key}=VALUE")


def check_engines(parsed: list, sweeps: bool) -> None:
    """Checks what the overrides ask of Hydra itself: the launcher, the sweeper and their options.

    Args:
      parsed: Hydra's parse of the overrides.
      sweeps: whether -m is given.

    Raises:
      ConfigError: a launcher or sweeper that is unknown or not installed, an option that it does
        not have, or no -m.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    asked = [override for override in parsed if is_for_hydra(override.key_or_group)]
    engines = [o for o in asked if o.key_or_group in ("hydra/launcher", "hydra/sweeper")]
    if all(override.key_or_group in (RUN, SWEEP) for override in asked):
        return
    register_options()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for override in engines:
            group, name = override.key_or_group, override.input_line.partition("=")[2]
            if override.is_add():
                raise ConfigError(f"+{group}", name, f"write {group}={name}")
            known = loader.get_group_options(group)
            file = CONF / group / f"{name}.yaml"
            plugin = OmegaConf.load(file).defaults[0] if file.exists() else name
            if plugin in EXTRAS and plugin not in known:
                extra = EXTRAS[plugin]
                raise ConfigError(group, name, f"needs an extra: pip install -e '.[{extra}]'")
            if name not in known:
                raise ConfigError(group, name, f"must be one of {', '.join(known)}")
            if not sweeps:
                raise ConfigError(group, name, "sweeps need -m")
        try:
            compose("config", [o.input_line for o in asked], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error, parsed) from error


def _jobs(parsed: list) -> Iterator[list[str]]:
    """The overrides of each job of a sweep: the product of the swept values."""
    alternatives = []
    for override in parsed:
        prefix = override.input_line.partition("=")[0]
        if override.is_sweep_override():
            alternatives.append([f"{prefix}={v}" for v in override.sweep_string_iterator()])
        else:
            alternatives.append([override.input_line])
    for job in itertools.product(*alternatives):
        yield list(job)


def run_with_hydra(job: Callable, arguments: list[str] | None = None) -> None:
    """Runs `job(node)` under Hydra for the command line, after all of its jobs were checked.

    A wrong option ends the process with one line and exit status 2, before any folder is made.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        show(help_text(world_named(arguments)))
        return
    with one_line_errors():
        arguments = in_order(_with_absolute_extend(with_quoted_folders(arguments)))
        check_command_line(arguments)
        arguments = _with_own_folder(arguments)
    if MULTIRUN & set(arguments):
        end_in_one_line(at_once=False)  # the launcher ends its workers
    import hydra

    register_options()
    # Hydra's parser wants its flags before the overrides.
    sys.argv[1:] = sorted(arguments, key=lambda text: text not in MULTIRUN)

    @functools.wraps(job)
    def guarded(node):
        try:
            return job(node)
        except (ConfigError, RunError) as error:
            if _sweep_goes_on(error):
                raise
            with one_line_errors():
                raise

    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(guarded)()


def _sweep_goes_on(error: ConfigError | RunError) -> bool:
    """Whether this process is a job of a sweep that goes on: FailedJobs then reports the error."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from icl_align.running.sweeps import runs_one_by_one

    hydra = HydraConfig.get()
    by_signal = isinstance(error, RunError) and error.status > SIGNALLED
    return hydra.mode == RunMode.MULTIRUN and not (by_signal and runs_one_by_one(hydra))


def with_quoted_folders(arguments: list[str]) -> list[str]:
    """The arguments with quotes around the name of a folder that Hydra's grammar cannot read."""
    found = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if equals and key in (RUN, SWEEP, EXTEND):
            try:
                parse_overrides([argument])
            except ConfigError:
                argument = f"{key}={quoted(text)}"
        found.append(argument)
    return found


def _with_absolute_extend(arguments: list[str]) -> list[str]:
    """The arguments with the whole name of the run that is extended: a job of a sweep may start in
    another folder.
    """
    found = []
    for argument in arguments:
        if argument.startswith(f"{EXTEND}="):
            override = parse_overrides([argument])[0]
            if isinstance(override.value(), str):
                argument = f"{EXTEND}={quoted(str(Path(override.value()).absolute()))}"
        found.append(argument)
    return found


def _with_own_folder(arguments: list[str]) -> list[str]:
    """The arguments with the folder of this start, a new one where none is named.

    That of a sweep is absolute: a job may start in another folder.
    """
    flags = {argument for argument in arguments if argument.startswith("-")}
    if not flags <= MULTIRUN:
        return arguments
    key = SWEEP if flags else RUN
    named = [argument for argument in arguments if argument.startswith(f"{key}=")]
    if not named:
        folder = make_new_folder(key)
    else:
        folder = Path(str(parse_overrides(named[-1:])[0].value()))
    folder = folder.absolute() if key == SWEEP else folder
    rest = [argument for argument in arguments if argument not in named]
    return [*rest, f"{key}={quoted(str(folder))}"]
