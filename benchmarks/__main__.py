"""Measures speed and memory on this machine, beside the same model in PyTorch.

python -m benchmarks [KEY=VALUE ...]

Prints tables and leaves report.md, report.json and, with growth, growth.png in `folder`. Nothing
else should run meanwhile: the report says what share of the processors was in other hands.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES
from icl_align.config import ConfigError, option
from icl_align.running.command import show
from icl_align.running.compose import check_folder, read_options
from icl_align.running.errors import RunError, one_line_errors
from icl_align.running.help import options_help

TORCH_MODES = {
    "none": (),
    "eager": ("PyTorch eager",),
    "both": ("PyTorch eager", "torch.compile"),
}
GROWTH_ROUNDS = 3  # at most, of every size
START_REPEATS = 3
REACH_SEEDS = (0, 1, 2)


@dataclasses.dataclass
class BenchmarkOptions:
    """All options of `python -m benchmarks`."""

    configs: list[str] = option(
        ["default", "published", "published_triplet"],
        f"configurations: some of {', '.join(CASES)}",
    )
    rounds: int = option(5, "paired rounds", least=1)
    seconds: float = option(3.0, "least seconds of one measurement", above=0)
    torch: str = option(
        "both", "PyTorch: not at all, eager, or eager and compiled", choices=tuple(TORCH_MODES)
    )
    start: bool = option(True, "time from the command to the first step")
    reach: bool = option(
        True,
        "time until the first configuration is good, as its world measures it: a refinement "
        "error of 0.31 at 15 attempts",
    )
    growth: bool = option(
        True, "growth of the default's step time, and the loss beside the attention of each"
    )
    folder: str = option("runs/benchmarks", "where the report goes")


def check_options(options: BenchmarkOptions) -> BenchmarkOptions:
    """Returns `options` if they can be used here.

    Raises:
      ConfigError: there is no such configuration, PyTorch is not installed, or the folder is none.
    """
    from benchmarks.machine import version

    for name in options.configs:
        if name not in CASES:
            raise ConfigError("configs", options.configs, f"must be some of {', '.join(CASES)}")
    if options.torch != "none" and None in (version("torch"), version("transformers")):
        raise ConfigError(
            "torch", options.torch, "needs an extra: pip install -e '.[bench]'; or torch=none"
        )
    check_folder("folder", options.folder)
    return options


def measure(options: BenchmarkOptions, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures what is asked for; the report is written after every part.

    Args:
      options: checked.
      command: what was typed, for the report.
      say: takes a line on what comes next.

    Returns:
      The content of report.json: command, date, options, machine, accelerator, cases, and start,
      reach, growth and parts where they were asked for. What failed is {"failed": reason}.
    """
    from benchmarks.contest import Failed
    from benchmarks.growth import AXES, CASE, measure_axis, measure_parts
    from benchmarks.machine import machine
    from benchmarks.report import write_report
    from benchmarks.start import measure_help, measure_start
    from benchmarks.steps import OURS, measure_case
    from benchmarks.worlds import subject_of
    from icl_align.running.compose import compose_config

    folder, modes = Path(options.folder), TORCH_MODES[options.torch]
    results: dict[str, Any] = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "options": dataclasses.asdict(options),
        "machine": machine(),
        "accelerator": None,
        "cases": {},
    }

    def part(place, key, line, measured, *arguments):
        say(line)
        try:
            place[key] = measured(*arguments)
        except Failed as reason:
            place[key] = {"failed": str(reason)}
            say(f"failed: {reason}")
        write_report(folder, results)

    for name in options.configs:
        what = f"training step: {name}"
        part(
            results["cases"], name, what, measure_case, name, options.rounds, options.seconds, modes
        )
        said = results["cases"][name].get("contenders", {}).get(OURS, {"platform": "cpu"})
        if said["platform"] != "cpu":
            results["accelerator"] = said["device"]
    if options.growth:
        results["parts"], results["growth"] = {}, {}
        subject = subject_of(compose_config(CASES[CASE]))
        results["labels"] = subject.labels
        for name in options.configs:
            what = f"loss and attention: {name}"
            part(results["parts"], name, what, measure_parts, name, options.rounds, options.seconds)
        for axis, values in {**AXES, **subject.axes}.items():
            arguments = axis, values, CASES[CASE], min(options.rounds, GROWTH_ROUNDS)
            what = f"growth: {axis}"
            part(results["growth"], axis, what, measure_axis, *arguments, options.seconds)
    if options.start:
        results["start"] = {"cases": {}}
        part(results["start"], "help", "time to the help", measure_help, START_REPEATS)
        for name in options.configs:
            what = f"time to the first step: {name}"
            arguments = CASES[name], START_REPEATS
            part(results["start"]["cases"], name, what, measure_start, *arguments)
    reach = subject_of(compose_config(CASES[options.configs[0]])).reach
    if options.reach and reach is not None:
        what = "time until it is good"
        arguments = CASES[options.configs[0]], list(REACH_SEEDS), bool(modes), options.seconds
        part(results, "reach", what, reach, *arguments)
    return results


def has_failed(results: Any) -> bool:
    """Whether any part of the results has failed."""
    if isinstance(results, dict):
        return "failed" in results or any(map(has_failed, results.values()))
    return False


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m benchmarks`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(BenchmarkOptions)]))
        return
    with one_line_errors():
        options = check_options(read_options(BenchmarkOptions, arguments))
        said = [text for text in arguments if not text.startswith("folder=")]
        from benchmarks.report import tables
        from icl_align.running.terminal import Terminal

        terminal = Terminal()
        command = " ".join(["python -m benchmarks", *said])
        try:
            results = measure(options, command, terminal.say)
        except KeyboardInterrupt:
            raise RunError(f"stopped; what was measured is in {options.folder}", 130) from None
        for table in tables(results):
            terminal.table(table.title, table.header, table.rows)
            for note in table.notes:
                terminal.say(note.replace("**", ""))
            terminal.say("")
        terminal.say(f"report: {Path(options.folder) / 'report.md'}")
    sys.exit(1 if has_failed(results) else 0)


if __name__ == "__main__":
    main()
