"""Another evaluation of a trained run: its options, its folder, its curves."""

import contextlib
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from icl_align.config import EVALUATION, Config, ConfigError, allowed, check, concerned, leaves
from icl_align.running.checkpoints import newest_state
from icl_align.running.compose import CONF, check_keys, check_writable, groups, parse_overrides
from icl_align.running.curves_file import read_curves
from icl_align.running.devices import learners_folder
from icl_align.running.evaluation import are_of, compute_curves
from icl_align.running.files import DamagedFileError, save_figure, write_json
from icl_align.running.kept import Kept
from icl_align.running.run_folder import EVALUATIONS, config_of_run
from icl_align.running.study import is_studied, leave_study, make_study
from icl_align.running.terminal import Terminal
from icl_align.world import world_of


def evaluation_config(trained: Config, overrides: list[str]) -> Config:
    """The configuration of another evaluation of a trained run.

    Args:
      trained: the run's configuration.
      overrides: of options that have to do with evaluation.

    Raises:
      ConfigError: an override is not allowed, or would need another network.
    """
    fields = {key: field for key, field, _ in leaves(trained)}
    free = concerned(trained, EVALUATION)
    node = OmegaConf.structured(trained)
    parsed = parse_overrides(overrides)
    check_keys(parsed, type(trained))
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise ConfigError(key, override.input_line.partition("=")[2], "cannot be swept here")
        try:
            if key in groups() and any(option.startswith(f"{key}.") for option in free):
                chosen = OmegaConf.load(CONF / key / f"{value}.yaml")
                if not {f"{key}.{name}" for name in chosen} <= free:
                    raise _fixed(key, value, trained)
                node[key] = OmegaConf.merge(node[key], chosen)
            elif key in free:
                OmegaConf.update(node, key, value)
            else:
                raise _fixed(key, value, trained)
        except OmegaConfBaseException as error:
            raise ConfigError(key, value, f"must be {allowed(fields[key])}") from error
    return check(OmegaConf.to_object(node), trained)


def _fixed(key: str, value: object, trained: Config) -> ConfigError:
    free = concerned(trained, EVALUATION)
    names = sorted({option.partition(".")[0] for option in free})
    every = {key for key, _, _ in leaves(trained) if key.partition(".")[0] in names}
    but = "".join(f", but not {option}" for option in sorted(every - free))
    can = ", ".join(f"{name}.*" for name in names)
    return ConfigError(key, value, f"fixed by the trained run; what can change: {can}{but}")


def evaluation_folder(run_dir: Path, names: list[str]) -> Path:
    """Where the curves of another evaluation lie, named after its overrides."""
    name = ",".join(text.replace("/", "_").replace(" ", "") for text in names)
    return run_dir / EVALUATIONS / name[:200]


def results_folder(
    run_dir: Path, trained: Config, overrides: list[str], step: int, output_dir: Path | None
) -> Path:
    """Where the results of another evaluation go: to the run's folder without overrides and after
    the last step; else below `evaluations/`, or to `output_dir`.

    Raises:
      ConfigError: that is a run with results of its own.
    """
    names = overrides + ([f"step_{step}"] if step < trained.train.steps else [])
    folder = output_dir or (evaluation_folder(run_dir, names) if names else run_dir)
    if names and (folder / ".hydra").is_dir():
        raise ConfigError(
            "output_dir", folder, "is a run with curves of its own, under its options"
        )
    return folder


def evaluate_again(
    run_dir: Path,
    overrides: list[str],
    terminal: Terminal,
    output_dir: Path | None = None,
    figure: Path | None = None,
) -> None:
    """Evaluates the newest state of a run, and leaves curves.json and curves.png.

    Args:
      run_dir: the run's folder. The results go there, or with overrides or an unfinished run to a
        folder below `evaluations/`.
      overrides: as in `evaluation_config`.
      terminal: shows how far it is, and the curves.
      output_dir: where the results go instead.
      figure: file for the picture, beside curves.png; with it, curves that are there already are
        not computed again.

    Raises:
      ConfigError: an override is not allowed, the folder holds no run, or the results cannot be
        written where they should go.
    """
    trained = config_of_run(run_dir)
    config = evaluation_config(trained, overrides)
    step, state = newest_state(run_dir, trained, terminal.warn)
    folder = results_folder(run_dir, trained, overrides, step, output_dir)
    if figure is not None:
        curves = _curves_there(folder, config, step)
        if curves is not None:
            save_figure(world_of(config).figure(config, curves), figure)
            terminal.say(f"drawn in {figure}")
            return
    check_writable("output_dir", folder)

    def progress(share):
        terminal.progress("evaluating", 100 * share, 100.0)

    try:
        curves = compute_curves(config, state, progress, Kept(learners_folder()))
    finally:
        terminal.stop_progress()
    picture = world_of(config).figure(config, curves)
    save_figure(picture, folder / "curves.png")
    if figure is not None:
        save_figure(picture, figure)
    write_json(folder / "curves.json", curves)
    terminal.curves_table(config.measures, curves)
    if is_studied(config):
        try:
            found = make_study(config, step, state.params, run_dir, progress, terminal.warn)
        finally:
            terminal.stop_progress()
        leave_study(config, folder, found)
        terminal.study_table(config.measures, found)
    terminal.say(f"written to {folder}")


def _curves_there(folder: Path, config: Config, step: int) -> dict[str, Any] | None:
    """The curves that a folder holds, if they are those that would be computed."""
    with contextlib.suppress(DamagedFileError, OSError):
        curves = read_curves(folder / "curves.json", config.measures)
        if curves is not None and are_of(config, step, curves):
            return curves
    return None
