"""From overrides to a checked `Config`: Hydra composes `conf/`, the options say what is allowed.

Nothing here imports JAX, so that `--help` and a wrong option answer at once.
"""

import contextlib
import dataclasses
import difflib
import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import yaml

from icl_align.config import FIGURE_FORMATS, Config, ConfigError, allowed, check, check_each, leaves
from icl_align.world import WORLDS, options_of

# In a checkout conf/ stands at the top level; a wheel carries it inside the package.
_PACKAGE = Path(__file__).parent.parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"
DEFAULT_WORLD = Config.world
# Groups that are put on top of the defaults, +GROUP=NAME, in the order in which they are applied:
# an ablation takes away from whatever it is combined with.
ADDED_GROUPS = ("experiment", "scale", "ablation")


def groups() -> dict[str, list[str]]:
    """Config group -> its choices, from the files of `conf/`."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }


def groups_of(options: type[Config]) -> dict[str, list[str]]:
    """Config group -> those of its choices that set options of a world, to what they may be."""
    fields = {key: field for key, field, _ in leaves(options)}
    sections = {field.name for field in dataclasses.fields(options)}

    def is_of_world(group: str, name: str) -> bool:
        settings = _settings_in((CONF / group / f"{name}.yaml").read_text(), group)
        return all(
            key in fields and value in (fields[key].metadata["choices"] or [value])
            for key, value in settings
        )

    return {
        group: [name for name in names if group == "world" or is_of_world(group, name)]
        for group, names in groups().items()
        if group in {*sections, *ADDED_GROUPS}
    }


@functools.cache  # every override of a group asks for all files of all groups
def _settings_in(text: str, group: str) -> tuple[tuple[str, Any], ...]:
    """(dotted key, value) of the text of a group's file; none where it cannot be read, of which
    whoever composes it hears.
    """
    prefix = "" if "@package _global_" in text else f"{group}."
    try:
        return tuple(_settings(yaml.safe_load(text) or {}, prefix))
    except yaml.YAMLError:
        return ()


def _settings(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a file of `conf/`, without its defaults."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield prefix + key, value


@functools.cache
def register_options() -> None:
    """Makes the options of every world known to Hydra, as `options/WORLD`."""
    from hydra.core.config_store import ConfigStore

    for world in WORLDS:
        node = options_of(world)
        ConfigStore.instance().store(group="options", name=world, node=node, package="_global_")


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
    overrides = in_order(overrides)
    parsed = parse_overrides(overrides)
    check_keys(parsed)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            node = compose("config", overrides=[o for o in overrides if not is_for_hydra(o)])
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, parsed) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or "is no YAML"
        raise ConfigError("conf", mark.name if mark else "", place + reason) from error
    return to_config(node)


def in_order(overrides: list[str]) -> list[str]:
    """The overrides with the groups that are added in the order of ADDED_GROUPS."""

    def rank(text):
        group = text.partition("=")[0].lstrip("+")
        added = text.startswith("+") and group in ADDED_GROUPS
        return ADDED_GROUPS.index(group) if added else len(ADDED_GROUPS)

    return sorted(overrides, key=rank)


def is_for_hydra(override: str) -> bool:
    """Whether an override is for Hydra itself."""
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
            how = f"KEY=VALUE, quoted: \"{key}='{value}'\"" if value else "KEY=VALUE without spaces"
            if text.startswith("-"):
                how = "KEY=VALUE, without dashes"
            raise ConfigError(key, value, f"cannot be read; write {how}") from error
    return parsed


def world_named(overrides: list[str]) -> str:
    """The world that overrides name; the default where they name none, or something else."""
    named = [text.partition("=")[2] for text in overrides if text.startswith("world=")]
    return named[-1] if named and named[-1] in WORLDS else DEFAULT_WORLD


def _options_named(parsed: list) -> type[Config]:
    return options_of(world_named([override.input_line for override in parsed]))


def check_keys(parsed: list, options: type[Config] | None = None) -> None:
    """Raises ConfigError for a key that is no option, or a choice its group does not have.

    Args:
      parsed: Hydra's parse of the overrides.
      options: of the world, by default the one that the overrides name.
    """
    options = options or _options_named(parsed)
    keys = [key for key, _, _ in leaves(options)]
    sections = {field.name for field in dataclasses.fields(options)}
    for override in parsed:
        name, text = override.key_or_group, override.value()
        if is_for_hydra(name):
            continue
        if override.is_delete():
            raise ConfigError(f"~{name}", text, "an option cannot be taken away")
        if name in {*keys, *groups()} - set(ADDED_GROUPS) and override.is_add():
            raise ConfigError(f"+{name}", text, f"write {name}={text}")
        if name in groups():
            if name not in {*sections, *ADDED_GROUPS}:
                raise ConfigError(name, text, f"world={options.world} has no {name}")
            _check_choice(name, override, options)
        elif name not in keys:
            raise ConfigError(name, text, f"no such option{_hint(name, [*keys, *groups()])}")


# What other programs call an option -> the last part of its name here.
ABBREVIATIONS = {"lr": "learning_rate", "bs": "batch_size", "batch": "batch_size"}
ABBREVIATIONS |= {
    "epochs": "steps",
    "iterations": "steps",
    "max_steps": "steps",
    "n_steps": "steps",
}
ABBREVIATIONS |= {"depth": "num_layers", "layers": "num_layers", "n_layers": "num_layers"}
ABBREVIATIONS |= {"heads": "num_heads", "n_heads": "num_heads", "seeds": "num_seeds"}
ABBREVIATIONS |= {"d_model": "width", "hidden_size": "width", "n_embd": "width"}
DEVICE_WORDS = {"device", "gpu", "gpus", "cuda", "cpu", "tpu", "platform", "accelerator", "backend"}


def _hint(name: str, known: list[str]) -> str:
    """What may have been meant by an option that there is not."""
    last = name.rpartition(".")[2]
    if last in DEVICE_WORDS:
        return (
            "; JAX chooses the device: an accelerator where its extra is installed ('.[cuda]', "
            "'.[tpu]'), or what the environment variable JAX_PLATFORMS=cpu says"
        )
    meant = [key for key in known if key.rpartition(".")[2] == ABBREVIATIONS.get(last, last)]
    # Of several with this last part, one whose section is as named, or else of training.
    section = name.rpartition(".")[0] or "train"
    meant.sort(key=lambda key: (not key.startswith(section), "." in key))
    meant = meant or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return (f"; did you mean {meant[0]}?" if meant else "") + " (--help lists all)"


def _check_choice(group: str, override: Any, options: type[Config]) -> None:
    text = override.value()
    picked = text if isinstance(text, list) else [text]
    if override.is_sweep_override():
        picked = list(override.sweep_string_iterator())
    for choice in picked:
        # A swept list of ablations arrives as the text "[a,b]".
        for part in str(choice).strip("[]").split(","):
            known = groups_of(options)[group]
            if part.strip() not in known:
                other = part.strip() in groups()[group]
                which = f"is not of world={options.world}; " if other else ""
                allowed = f"must be one of {', '.join(known)}" if known else "it has none"
                raise ConfigError(group, choice, which + allowed)
    if group in ADDED_GROUPS and not override.is_add():
        raise ConfigError(group, text, f"write +{group}={text}")


def explain(error: Exception, parsed: list) -> ConfigError:
    """The ConfigError that says what Hydra's or OmegaConf's error means here."""
    fields = {key: field for key, field, _ in leaves(_options_named(parsed))}
    key = getattr(error.__cause__ or error, "full_key", None)
    for override in parsed:
        if override.key_or_group == key and key in fields:
            return ConfigError(key, override.value(), f"must be {allowed(fields[key])}")
    cause = str(error.__cause__ or "").partition("\n")[0]
    reason = " ".join(f"{error} {cause}".split())
    sets = re.search(r"In '(\w+)/(\w+)': .*full_key: ([\w.]+)", reason)
    if sets:
        group, name, key = sets.groups()
        world = _options_named(parsed).world
        return ConfigError(group, name, f"sets {key}, which world={world} does not have")
    value = next((o.input_line.partition("=")[2] for o in parsed if o.key_or_group == key), "")
    return ConfigError(key or "options", value, reason)


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


def check_figure(key: str, value: str) -> None:
    """Raises ConfigError where a file's name does not end in a format of figures, or where its
    folder cannot be made or written to.
    """
    if Path(value).suffix.lstrip(".") not in FIGURE_FORMATS:
        endings = ", ".join(f".{name}" for name in FIGURE_FORMATS)
        raise ConfigError(key, value, f"must end in {endings}")
    check_writable(key, Path(value).parent)


def check_writable(key: str, folder: Path) -> None:
    """Makes a folder, or raises ConfigError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"nothing can be written there ({error.strerror}); name another folder"
        raise ConfigError(key, folder, reason) from error


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
