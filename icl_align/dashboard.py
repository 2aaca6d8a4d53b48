"""Builds a Weights & Biases workspace: training, curves by learner, ablations and verdicts.

python -m icl_align.dashboard [KEY=VALUE ...]    saves it in the project and prints its address
"""

import sys

from icl_align.running.command import begin, show
from icl_align.running.compose import read_options, world_named
from icl_align.running.errors import one_line_errors
from icl_align.running.help import options_help
from icl_align.running.workspace import dashboard_options, save_workspace


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.dashboard`."""
    begin()
    arguments = sys.argv[1:] if arguments is None else arguments
    schema = dashboard_options(world_named(arguments))
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(schema)]))
        return
    with one_line_errors():
        show(save_workspace(read_options(schema, arguments)))


if __name__ == "__main__":
    main()
