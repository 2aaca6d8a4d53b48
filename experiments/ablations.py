"""The three quantities of every run in a folder, as a Markdown table.

python -m icl_align.train -m num_seeds=3 +ablation=shallow,no_mlp hydra.sweep.dir=sweeps/ablations
python -m experiments.ablations sweeps/ablations
"""

import argparse
import json
from pathlib import Path

from omegaconf import OmegaConf

from icl_align.running.run_folder import config_of_run


def ablation_of(run: Path) -> str:
    """The ablations a run was started with, from its overrides; "none" without any."""
    overrides = OmegaConf.load(run / ".hydra" / "overrides.yaml")
    names = [text.partition("=")[2] for text in overrides if text.startswith("+ablation=")]
    return ", ".join(names) or "none"


def row(run: Path, attempts: int, noise: str) -> str:
    """One line of the table: the transformer's mean and half the width of its 95% interval."""
    measures = config_of_run(run).measures
    curves = json.loads((run / "curves.json").read_text())
    place = curves[measures.axis].index(attempts)
    cells = [f"`{ablation_of(run)}`"]
    for quantity in measures.quantities:
        curve = curves["learners"][measures.trained][noise][quantity]
        half = (curve["high"][place] - curve["low"][place]) / 2
        cells.append(f"{curve['mean'][place]:.3f} ± {half:.3f}")
    return f"| {' | '.join([*cells, str(len(curves['seeds']))])} |"


def main() -> None:
    """Prints the table of the folders named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.ablations", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that hold runs")
    parser.add_argument("--attempts", type=int, default=15, help="attempts in context (15)")
    parser.add_argument("--noise", default="0.0", help="reward noise, as in curves.json (0.0)")
    options = parser.parse_args()
    runs = sorted(
        {file.parent for folder in options.folders for file in folder.glob("*/curves.json")}
    )
    if not runs:
        parser.error(f"no finished run in {', '.join(map(str, options.folders))}")
    quantities = config_of_run(runs[0]).measures.quantities
    print(f"| ablation | {' | '.join(name.replace('_', ' ') for name in quantities)} | seeds |")
    print("| --- " * (len(quantities) + 2) + "|")
    try:
        lines = [row(run, options.attempts, options.noise) for run in runs]
    except (KeyError, ValueError):
        parser.error(f"not every run has {options.attempts} attempts and noise {options.noise}")
    for line in sorted(lines, key=lambda line: not line.startswith("| `none`")):
        print(line)


if __name__ == "__main__":
    main()
