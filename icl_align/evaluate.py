"""Evaluates a finished run again: other noise levels, reward transforms, samples, or another task.

python -m icl_align.evaluate run_dir=DIR [task=NAME] [task.KEY=VALUE] [evaluation.KEY=VALUE] ...
"""

import sys
from pathlib import Path

from icl_align.cli import CONF, check_keys, one_line_errors, parse_overrides
from icl_align.config import Config, ConfigError, allowed, check, leaves


def evaluation_config(trained: Config, overrides: list[str]) -> Config:
    """The configuration of another evaluation of a trained run.

    Args:
      trained: the run's configuration.
      overrides: of the task, evaluation and gradient_descent sections.

    Raises:
      ConfigError: an override is not allowed, or would need another transformer.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    fields = {key: field for key, field, _ in leaves()}
    node = OmegaConf.structured(trained)
    parsed = parse_overrides(overrides)
    check_keys(parsed)
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise ConfigError(key, override.input_line.partition("=")[2], "cannot be swept here")
        if key == "task":
            node.task = OmegaConf.merge(node.task, OmegaConf.load(CONF / "task" / f"{value}.yaml"))
        elif key.startswith(("task.", "evaluation.", "gradient_descent.")) and key != "task.dim":
            try:
                OmegaConf.update(node, key, value)
            except OmegaConfBaseException as error:
                raise ConfigError(key, value, f"must be {allowed(fields[key])}") from error
        else:
            raise ConfigError(
                key, value, "fixed by the trained run; task.*, evaluation.* and "
                "gradient_descent.* can change, but task.dim cannot"
            )  # fmt: skip
    config = OmegaConf.to_object(node)
    most = trained.task.num_responses
    if trained.model.positions and config.task.num_responses > most:
        raise ConfigError(
            "task.num_responses",
            config.task.num_responses,
            f"must be at most {most}, the learned positions of this run",
        )
    # What was trained on is settled; only the new task and evaluation are checked.
    config.loss.min_attempts, config.loss.max_attempts = 2, None
    return check(config)


def evaluation_folder(run_dir: Path, names: list[str]) -> Path:
    """Where the curves of another evaluation lie, named after its overrides."""
    name = ",".join(text.replace("/", "_").replace(" ", "") for text in names)
    return run_dir / "evaluations" / name[:200]


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.evaluate`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        print(
            "\nWithout other options curves.json and curves.png of the run are made again; with"
            "\nsome, a folder under DIR/evaluations/ named after them. Options: see"
            "\npython -m icl_align.train --help, sections task, evaluation, gradient_descent."
        )
        return
    with one_line_errors():
        _evaluate_again(arguments)


def _evaluate_again(arguments: list[str]) -> None:
    from icl_align.checkpoints import newest_state
    from icl_align.curves import compute_curves
    from icl_align.files import write_json
    from icl_align.plots import save_curves_figure
    from icl_align.run_folder import config_of_run
    from icl_align.terminal import Terminal

    named = [text for text in arguments if text.startswith("run_dir=")]
    overrides = [text for text in arguments if not text.startswith("run_dir=")]
    if not named:
        raise ConfigError("run_dir", "", "name the folder of a run: run_dir=DIR")
    run_dir = Path(named[-1].partition("=")[2])
    trained = config_of_run(run_dir)
    config = evaluation_config(trained, overrides)
    terminal = Terminal()
    step, state = newest_state(run_dir, trained, terminal.warn)
    names = overrides + ([f"step_{step}"] if step < trained.train.steps else [])
    folder = evaluation_folder(run_dir, names) if names else run_dir
    folder.mkdir(parents=True, exist_ok=True)
    try:
        curves = compute_curves(
            config, state, lambda share: terminal.progress("evaluating", 100 * share, 100.0)
        )
    finally:
        terminal.stop_progress()
    save_curves_figure(config.task, curves, folder / "curves.png")
    write_json(folder / "curves.json", curves)
    terminal.curves_table(curves)
    terminal.say(f"written to {folder}")


if __name__ == "__main__":
    main()
