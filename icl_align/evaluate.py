"""Evaluates a finished run again under other options: other contexts, reward noise, plans, critics.

python -m icl_align.evaluate run_dir=DIR [output_dir=DIR] [figure=FILE] [evaluation.KEY=VALUE] ...
"""

import sys
from pathlib import Path

from icl_align import CommandModule
from icl_align.config import ConfigError
from icl_align.running.command import begin, show
from icl_align.running.compose import check_figure
from icl_align.running.errors import one_line_errors

WHERE = """
Without other options curves.json and curves.png of the run are made again; with some, a folder
under DIR/evaluations/ named after them, or output_dir where one is given. figure=FILE draws them
there as well, as .png, .pdf or .svg; curves that are there already are not computed again for it.
Options: see python -m icl_align.train world=WORLD --help, what an evaluation has to do with."""


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.evaluate`."""
    begin()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        show(f"{__doc__.strip()}\n{WHERE}")
        return
    with one_line_errors():
        _evaluate_again(arguments)


def _evaluate_again(arguments: list[str]) -> None:
    paths: dict[str, Path | None] = {"run_dir": None, "output_dir": None, "figure": None}
    overrides = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals and Path(argument).is_dir():
            raise ConfigError("run_dir", "", f"write run_dir={argument}")
        if equals and key in paths:
            paths[key] = Path(text)
        else:
            overrides.append(argument)
    if paths["run_dir"] is None:
        raise ConfigError("run_dir", "", "name the folder of a run: run_dir=DIR")
    if paths["figure"] is not None:
        check_figure("figure", str(paths["figure"]))
    from icl_align.running.devices import set_up_command

    set_up_command()
    from icl_align.running.reevaluation import evaluate_again
    from icl_align.running.terminal import Terminal

    evaluate_again(overrides=overrides, terminal=Terminal(), **paths)


sys.modules[__name__].__class__ = CommandModule
if __name__ == "__main__":
    main()
