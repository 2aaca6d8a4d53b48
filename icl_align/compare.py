"""Compares runs: the options that differ and the headline numbers, and a picture of their curves.

python -m icl_align.compare RUN... [KEY=VALUE ...]     each a run's folder, or one that holds runs
"""

import dataclasses
import sys
from pathlib import Path
from typing import Optional

from icl_align import CommandModule
from icl_align.config import ConfigError, option
from icl_align.running.command import begin, show
from icl_align.running.compose import check_figure, read_options
from icl_align.running.errors import one_line_errors
from icl_align.running.help import options_help


@dataclasses.dataclass
class CompareOptions:
    """All options of `python -m icl_align.compare`."""

    at: Optional[int] = option(
        None,
        "place on the axis, such as attempts; null is where headline numbers are taken",
        least=0,
    )
    condition: Optional[str] = option(
        None, "as in curves.json, such as a reward noise; null is the first"
    )
    figure: Optional[str] = option(None, "file for a picture of the curves: .png, .pdf or .svg")
    markdown: bool = option(False, "print the table as Markdown")


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.compare`."""
    begin()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(CompareOptions)]))
        return
    keys = {field.name for field in dataclasses.fields(CompareOptions)}
    # A folder's name may hold "=".
    own = [text for text in arguments if text.partition("=")[0] in keys or not Path(text).exists()]
    folders = [Path(text) for text in arguments if text not in own]
    with one_line_errors():
        for text in own:
            if text.startswith("-"):
                raise ConfigError(text, "", f"options are written KEY=VALUE: {', '.join(keys)}")
            if "=" not in text:
                raise ConfigError("RUN", text, "no such folder")
        options = read_options(CompareOptions, own)
        if options.figure is not None:
            check_figure("figure", options.figure)
        _compare(folders, options)


def _compare(folders: list[Path], options: CompareOptions) -> None:
    from icl_align.running.comparison import curves_figure, markdown, runs_in, table
    from icl_align.running.files import save_figure
    from icl_align.running.terminal import Terminal

    runs = runs_in(folders, Terminal().warn)
    title, header, rows = table(runs, options.at, options.condition)
    if options.markdown:
        show(markdown(header, rows))
    else:
        Terminal().table(title, header, rows)
    if options.figure is not None:
        save_figure(curves_figure(runs, options.condition), Path(options.figure))
        show(f"drawn in {options.figure}")


sys.modules[__name__].__class__ = CommandModule
if __name__ == "__main__":
    main()
