"""The ablations of a sweep side by side, as `icl_align.compare` has runs; a Markdown table.

python -m icl_align.train -m num_seeds=3 +ablation=none,shallow,no_mlp hydra.sweep.dir=sweeps/parts
python -m experiments.ablations sweeps/parts
"""

import argparse
from pathlib import Path

from icl_align.running.command import begin, show
from icl_align.running.comparison import markdown, runs_in, table
from icl_align.running.errors import one_line_errors
from icl_align.running.terminal import Terminal


def main() -> None:
    """Prints the table of the folders named on the command line, the base first."""
    begin()
    parser = argparse.ArgumentParser(prog="python -m experiments.ablations", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that hold runs")
    parser.add_argument("--at", type=int, help="place on the axis, such as attempts")
    parser.add_argument("--condition", help="as in curves.json, such as a reward noise")
    options = parser.parse_args()
    with one_line_errors():
        runs = runs_in(options.folders, Terminal().warn)
        _, header, rows = table(runs, options.at, options.condition)
        first_number = len(header) - 1 - len(runs[0].config.measures.quantities)
        named = [
            [f"`{run.ablation or 'none'}`", *row[first_number:]]
            for run, row in zip(runs, rows, strict=True)
        ]
        named.sort(key=lambda row: row[0] != "`none`")
        show(markdown(["ablation", *header[first_number:]], named))


if __name__ == "__main__":
    main()
