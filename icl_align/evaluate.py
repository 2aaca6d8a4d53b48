"""Evaluates a finished run again, with another task, other contexts or other reward noise.

python -m icl_align.evaluate run_dir=DIR [task=NAME] [task.KEY=VALUE] [evaluation.KEY=VALUE] ...
"""

import sys
from pathlib import Path

from icl_align import CommandModule
from icl_align.config import ConfigError
from icl_align.running.errors import one_line_errors


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
    named = [text for text in arguments if text.startswith("run_dir=")]
    overrides = [text for text in arguments if not text.startswith("run_dir=")]
    if not named:
        raise ConfigError("run_dir", "", "name the folder of a run: run_dir=DIR")
    from icl_align.running.devices import set_up_jax

    set_up_jax()
    from icl_align.running.reevaluation import evaluate_again
    from icl_align.running.terminal import Terminal

    evaluate_again(Path(named[-1].partition("=")[2]), overrides, Terminal())


sys.modules[__name__].__class__ = CommandModule
if __name__ == "__main__":
    main()
