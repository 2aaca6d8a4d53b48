"""What a run shows on the terminal: a start line, a progress bar, a table."""

import logging
import sys
import time
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from icl_align.config import Config, differences, setting
from icl_align.world import Measures, options_of


def changed_options(config: Config) -> str:
    """The options that differ from the defaults, as they would be typed."""
    defaults = options_of(config.world)()
    changed = [setting(key, new) for key, (_, new) in differences(defaults, config).items()]
    return ", ".join(changed) or "nothing changed from the defaults"


LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


class Terminal:
    """The outermost voice of a run. Where there is no terminal its bar is a line now and then.

    Args:
      job: the number of the job in its sweep, which every line then says.
    """

    def __init__(self, job: str | None = None) -> None:
        self._prefix = "" if job is None else f"job {job}: "
        self._began = self._said = time.monotonic()
        self._named: tuple[str, float] | None = None
        # Orbax's notes are not the user's; what goes wrong arrives as an exception.
        logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
        self._console = Console(highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._errors,
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._task = None

    def say(self, line: str) -> None:
        """One line on stdout, never wrapped."""
        self._console.print(self._prefix + line, soft_wrap=True, markup=False)

    def warn(self, line: str) -> None:
        """One line on stderr."""
        self._errors.print(f"icl_align: {self._prefix}{line}", soft_wrap=True, markup=False)

    def progress(self, name: str, done: float, total: float, note: str = "") -> None:
        """Shows the bar `name` at `done` of `total`; another name starts another bar."""
        if self._progress.disable:
            self._line_of_progress(name, done, total, note)
            return
        if self._task is None or self._progress.tasks[-1].description != name:
            self.stop_progress()
            self._task = self._progress.add_task(name, total=total, completed=done, note=note)
            self._progress.start()
        self._progress.update(self._task, completed=done, note=note)

    def _line_of_progress(self, name: str, done: float, total: float, note: str) -> None:
        now = time.monotonic()
        if self._named is None or self._named[0] != name:
            self._named, self._began = (name, done), now
        if now - self._said < LINE_SECONDS:
            return
        self._said = now
        made = done - self._named[1]
        left = (now - self._began) * (total - done) / made if made > 0 else None
        parts = [f"{name} {done:.0f}/{total:.0f}", note, f"{left:.0f} s left" if left else ""]
        self.say(" · ".join(part for part in parts if part))

    def stop_progress(self) -> None:
        """Takes the bar away."""
        self._progress.stop()
        for task in list(self._progress.task_ids):
            self._progress.remove_task(task)
        self._task = None

    def table(
        self, title: str, header: list[str], rows: list[list[str]], bold: str | None = None
    ) -> None:
        """A table with its first column to the left and the others to the right.

        Args:
          title: above it.
          header: of the columns.
          rows: cells.
          bold: what the first cell of a row that stands out is.
        """
        console = self._console
        if not console.is_terminal:  # a file or a pipe gets unbroken lines
            widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
            console = Console(highlight=False, width=max(80, sum(widths) + 3 * len(widths)))
        console.print(title, style="italic", soft_wrap=True, markup=False)
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for place, name in enumerate(header):
            table.add_column(escape(name), justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(*map(escape, row), style="bold" if row[0] == bold else None)
        console.print(table, end="\n\n")

    def curves_table(self, measures: Measures, curves: dict[str, Any]) -> None:
        """Learners x conditions at the place of the headline numbers, a table for each quantity."""
        conditions = list(curves[measures.compared][measures.trained])
        place = measures.judged_place(curves[measures.axis])
        at, by = curves[measures.axis][place], measures.condition.replace("_", " ")
        for quantity in measures.quantities:
            rows = [
                [name, *(_cell(of_learner[condition][quantity], place) for condition in conditions)]
                for name, of_learner in curves[measures.compared].items()
            ]
            title = f"{quantity.replace('_', ' ')} after {at} {measures.axis}, by {by}"
            self.table(
                title,
                [measures.compared.removesuffix("s"), *conditions],
                rows,
                bold=measures.trained,
            )
        for flag, words in measures.flags.items():
            worst = max(curves[flag].values())
            if worst > 0:
                self.warn(words.format(share=worst))

    def study_table(self, measures: Measures, found: dict[str, Any]) -> None:
        """The headline numbers of a study."""
        rows = [
            [row["name"], f"{row['mean']:z.3f}", f"[{row['low']:z.3f}, {row['high']:z.3f}]"]
            for row in found["summary"]
        ]
        self.table(measures.study, ["", "mean", "95% interval"], rows)


def headline(measures: Measures, curves: dict[str, Any]) -> str:
    """The headline numbers of what was trained, in one line."""
    condition, quantities = next(iter(curves[measures.compared][measures.trained].items()))
    place = measures.judged_place(curves[measures.axis])
    numbers = [f"{n.replace('_', ' ')} {c['mean'][place]:z.3f}" for n, c in quantities.items()]
    by = measures.condition.replace("_", " ")
    at = curves[measures.axis][place]
    return f"{', '.join(numbers)} after {at} {measures.axis}, {by} {condition}"


def _cell(curve: dict[str, list[float]], place: int) -> str:
    """Mean and half the width of its interval, at a place of the axis."""
    mean, low, high = (curve[name][place] for name in ("mean", "low", "high"))
    half = f"{(high - low) / 2:.3f}".removeprefix("0")
    return f"{mean:z.3f}±{half}"
