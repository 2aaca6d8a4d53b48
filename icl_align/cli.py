"""The command line: from overrides to a checked `Config`, and from errors to one clear line.

Hydra composes `conf/`; `config.py` says what is allowed. Nothing here imports JAX, so that `--help`
and a wrong option answer at once.
"""

import contextlib
import difflib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

from icl_align.config import (
    Config,
    ConfigError,
    allowed,
    check,
    check_each,
    leaves,
    setting,
)

# In a checkout conf/ stands at the top level; a wheel carries it inside the package.
_PACKAGE = Path(__file__).parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"

MULTIRUN = {"-m", "--multirun"}
# A plugin's own name for its launcher or sweeper -> the extra of this package that installs it.
EXTRAS = {
    "joblib": "joblib",
    "ray": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "optuna": "optuna",
}
USAGE_ERROR = 2  # exit status of a wrong option or a run folder that cannot be used
SIGNALLED = 128  # with the signal's number added: exit status of a run that a signal stopped


class RunError(Exception):
    """Something that ends a run with one line on the terminal and this exit status."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a ConfigError or RunError into one line on stderr and an exit status."""
    try:
        yield
    except ConfigError as error:
        sys.stderr.write(f"icl_align: error: {error}\n")
        sys.exit(USAGE_ERROR)
    except RunError as error:
        sys.stderr.write(f"icl_align: error: {error}\n")
        sys.exit(error.status)


# --------------------------------------------------------------------------------------- composing


def groups() -> dict[str, list[str]]:
    """Config group -> its choices, from the files of `conf/`."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


def register_options() -> None:
    """Makes the schema of `config.py` known to Hydra as `options`."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="options", node=Config)


def to_config(node) -> Config:
    """A checked Config from Hydra's composed one.

    Raises:
      ConfigError: an option is not allowed.
    """
    from omegaconf import OmegaConf

    return check(OmegaConf.to_object(node))


def compose_config(overrides: list[str]) -> Config:
    """The checked Config of a list of overrides, as Hydra would compose it.

    Raises:
      ConfigError: naming the override that cannot be used, and what is allowed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_options()
    parsed = parse_overrides(overrides)
    check_keys(parsed)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            node = compose("config", overrides=[o for o in overrides if not _is_for_hydra(o)])
    except (HydraException, OmegaConfBaseException) as error:
        raise _explain(error, parsed) from error
    return to_config(node)


def _is_for_hydra(override: str) -> bool:
    return override.lstrip("+~").startswith("hydra")


def parse_overrides(overrides: list[str]) -> list:
    """Hydra's own parse of the overrides.

    Raises:
      ConfigError: one is not of the form key=value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException as error:
            key, _, value = text.partition("=")
            raise ConfigError(key, value, "cannot be read; write KEY=VALUE") from error
    return parsed


def check_keys(parsed: list) -> None:
    """Raises ConfigError for a key that is no option, or a choice its group does not have."""
    keys = [key for key, _, _ in leaves()]
    for override in parsed:
        name, text = override.key_or_group, override.value()
        if _is_for_hydra(name):
            continue
        if override.is_delete():
            raise ConfigError(f"~{name}", text, "an option cannot be taken away")
        if name in keys and override.is_add():
            raise ConfigError(f"+{name}", text, f"write {name}={text}")
        if name in groups():
            picked = override.value() if isinstance(override.value(), list) else [override.value()]
            if override.is_sweep_override():
                picked = list(override.sweep_string_iterator())
            in_defaults = name in ("task", "model", "loss")
            for choice in picked:
                # A swept list of ablations arrives as the text "[a,b]".
                for part in str(choice).strip("[]").split(","):
                    if part.strip() not in groups()[name]:
                        options = ", ".join(groups()[name])
                        raise ConfigError(name, choice, f"must be one of {options}")
            if not in_defaults and not override.is_add():
                raise ConfigError(name, text, f"write +{name}={text}")
        elif name not in keys:
            close = difflib.get_close_matches(name, [*keys, *groups()], n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(name, text, f"no such option{hint} (--help lists all)")


def _explain(error: Exception, parsed: list) -> ConfigError:
    """The ConfigError that says what Hydra's or OmegaConf's error means here."""
    fields = {key: field for key, field, _ in leaves()}
    key = getattr(error.__cause__ or error, "full_key", None)
    for override in parsed:
        if override.key_or_group == key and key in fields:
            return ConfigError(key, override.value(), f"must be {allowed(fields[key])}")
    cause = str(error.__cause__ or "").partition("\n")[0]
    reason = " ".join(f"{error} {cause}".split())
    value = next((o.input_line.partition("=")[2] for o in parsed if o.key_or_group == key), "")
    return ConfigError(key or "options", value, reason)


def check_command_line(arguments: list[str]) -> None:
    """Composes and checks every job of a command line before Hydra makes any folder.

    Raises:
      ConfigError: for the first job that cannot run.
    """
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    flags = {argument for argument in arguments if argument.startswith("-")}
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
        if override.key_or_group in ("hydra.run.dir", "hydra.sweep.dir"):
            check_folder(override.key_or_group, str(override.value()))


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

    asked = [override for override in parsed if _is_for_hydra(override.key_or_group)]
    engines = [o for o in asked if o.key_or_group in ("hydra/launcher", "hydra/sweeper")]
    if all(override.key_or_group in ("hydra.run.dir", "hydra.sweep.dir") for override in asked):
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
                raise ConfigError(group, name, f"needs an extra: pip install '.[{extra}]'")
            if name not in known:
                raise ConfigError(group, name, f"must be one of {', '.join(known)}")
            if not sweeps:
                raise ConfigError(group, name, "sweeps need -m")
        try:
            compose("config", [o.input_line for o in asked], return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _explain(error, parsed) from error


def check_folder(key: str, value: str) -> None:
    """Raises ConfigError where no folder is and none can be made."""
    folder = Path(value)
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not existed:
            with contextlib.suppress(OSError):  # another process may use it, or be as tidy
                folder.rmdir()
    except OSError as error:
        raise ConfigError(key, value, f"must be a folder or a new one: {error.strerror}") from error


MOST_CHECKED_JOBS = 64  # of a sweep; composing takes some 50 ms


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


def read_options(schema: type, arguments: list[str]) -> Any:
    """An instance of the dataclass `schema` from KEY=VALUE arguments.

    Raises:
      ConfigError: naming the argument that cannot be used, and what is allowed.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    fields = {key: field for key, field, _ in leaves(schema)}
    node = OmegaConf.structured(schema)
    texts = [argument.partition("=") for argument in arguments]
    for key, equals, text in texts:  # a path may hold what the grammar of overrides would read
        if equals and key in fields and fields[key].type == Optional[str] and text != "null":
            if not text:
                raise ConfigError(key, text, "must not be empty")
            OmegaConf.update(node, key, text)
            arguments = [argument for argument in arguments if argument != f"{key}={text}"]
    for override in parse_overrides(arguments):
        key, text = override.key_or_group, override.input_line.partition("=")[2]
        if key not in fields:
            raise ConfigError(key, text, f"no such option; one of {', '.join(fields)}")
        if override.is_add() or override.is_delete():
            raise ConfigError(override.input_line.partition("=")[0], text, f"write {key}=VALUE")
        if override.is_sweep_override():
            raise ConfigError(key, text, "cannot be swept here")
        try:
            OmegaConf.update(node, key, override.value())
        except OmegaConfBaseException as error:
            raise ConfigError(key, text, f"must be {allowed(fields[key])}") from error
    return check_each(OmegaConf.to_object(node))


# ------------------------------------------------------------------------------------------- help


def options_help(schema: type) -> list[str]:
    """Two lines for each option: its default and meaning, and what is allowed."""
    lines, section = [], None
    for key, field, default in leaves(schema):
        name = key.rpartition(".")[0] or "run"
        if name != section and schema is Config:
            section = name
            lines += ["", f"{section}"]
        lines.append(f"  {setting(key, default):<40} {field.metadata['help']}")
        lines.append(f"  {'':<40} {allowed(field)}")
    return lines


def _first_comment(file: Path) -> str:
    lines = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
    lines = [line for line in lines if not line.startswith("@package")]
    return " ".join(lines).split(". ")[0].rstrip(".")


def help_text() -> str:
    """What `python -m icl_align.train --help` prints."""
    lines = [
        "Trains a tiny transformer to refine responses in context, compares it with every other",
        "learner, and leaves a run folder: metrics.jsonl, curves.json, curves.png, checkpoints/,",
        "wandb/.",
        "",
        "usage: python -m icl_align.train [KEY=VALUE ...] [+ablation=NAME] [+experiment=paper]",
        "       python -m icl_align.train hydra.run.dir=DIR      goes on with the run in DIR",
        "       python -m icl_align.train -m KEY=A,B,C           a sweep, one run for each value",
        "",
        "choices (they combine: '+ablation=[linear_attn,no_mlp]')",
    ]
    for group, names in groups().items():
        plus = "" if group in ("task", "model", "loss") else "+"
        for name in names:
            comment = _first_comment(CONF / group / f"{name}.yaml")
            lines.append(f"  {plus + group + '=' + name:<36} {comment}".rstrip())
    lines += ["", "with -m"]
    for file in sorted(CONF.glob("hydra/*/*.yaml")):
        lines.append(f"  {f'hydra/{file.parent.name}={file.stem}':<36} {_first_comment(file)}")
    lines += options_help(Config)
    lines += ["", "Hydra's own flags: --hydra-help. Full configuration: --cfg job."]
    return "\n".join(lines)


def run_with_hydra(job: Callable, arguments: list[str] | None = None) -> None:
    """Runs `job(node)` under Hydra for the command line, after all of its jobs were checked.

    A wrong option ends the process with one line and exit status 2, before any folder is made.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return
    with one_line_errors():
        check_command_line(arguments)
        arguments = _with_absolute_sweep(arguments)
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

    from icl_align.sweeps import runs_one_by_one

    hydra = HydraConfig.get()
    by_signal = isinstance(error, RunError) and error.status > SIGNALLED
    return hydra.mode == RunMode.MULTIRUN and not (by_signal and runs_one_by_one(hydra))


def _with_absolute_sweep(arguments: list[str]) -> list[str]:
    """The arguments with an absolute hydra.sweep.dir: a job may start in another folder."""
    absolute = []
    for argument in arguments:
        if argument.startswith("hydra.sweep.dir="):
            folder = str(parse_overrides([argument])[0].value())
            quoted = str(Path(folder).absolute()).replace("\\", "\\\\").replace("'", "\\'")
            argument = f"hydra.sweep.dir='{quoted}'"
        absolute.append(argument)
    return absolute
