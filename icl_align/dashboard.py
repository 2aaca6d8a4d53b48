"""Builds a Weights & Biases workspace: training, curves by learner, ablations and verdicts.

python -m icl_align.dashboard [KEY=VALUE ...]    saves it in the project and prints its address
"""

import contextlib
import dataclasses
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Optional

from icl_align.cli import RunError, one_line_errors, options_help, read_options
from icl_align.config import LEARNERS, ConfigError, EvaluationConfig, WandbConfig, option
from icl_align.tracking import check_account, curve_name, final_name

TRAINING = {
    "train/loss": "loss",
    "train/grad_norm": "gradient norm",
    "train/learning_rate": "learning rate",
    "perf/contexts_per_second": "contexts a second",
}
COMPARE = ("ablation", "name")


@dataclasses.dataclass
class DashboardConfig:
    """All options of `python -m icl_align.dashboard`."""

    entity: Optional[str] = option(None, "user or team; null is the account's default")
    project: str = option(WandbConfig().project, "project that has the runs")
    group: Optional[str] = option(None, "campaign or sweep to show; null shows all runs")
    name: Optional[str] = option(None, "name of the workspace; null is the group, or the project")
    compare: str = option(
        "ablation", "runs of one ablation, or of one name, are a line or bar", choices=COMPARE
    )
    reward_noise: list[float] = option(
        EvaluationConfig().reward_noise, "levels the runs were evaluated at", least=0, most=1
    )


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.dashboard`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print("\n".join([__doc__.strip(), "", *options_help(DashboardConfig)]))
        return
    with one_line_errors():
        print(save_workspace(read_options(DashboardConfig, arguments)))


def save_workspace(options: DashboardConfig) -> str:
    """Saves the workspace of `options` as a new view of the project, and returns its address.

    Raises:
      ConfigError: no account is known, or it sees no such project or group.
      RunError: wandb-workspaces is not installed, or W&B does not answer as it should.
    """
    _workspaces()  # before anything goes over the network
    check_account(WandbConfig(mode="online"))
    import wandb

    with _as_run_error():
        api = wandb.Api()
        entity = options.entity or api.default_entity
    if entity is None:
        raise ConfigError("entity", None, "the account has no default; name a user or team")
    options = dataclasses.replace(options, entity=entity)
    path = f"{entity}/{options.project}"
    with _as_run_error():
        try:
            filters = {"group": options.group} if options.group else {}
            num_runs = len(api.runs(path, filters=filters, per_page=1))
        except ValueError as error:
            raise ConfigError("project", path, "not found, or not open to this account") from error
    if num_runs == 0:
        key = "group" if options.group else "project"
        raise ConfigError(key, getattr(options, key), f"has no run in {path}")
    with _as_run_error():
        return build_workspace(options).save().url


@contextlib.contextmanager
def _as_run_error() -> Iterator[None]:
    """Turns whatever the W&B client raises, which has no common class, into one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise RunError(f"Weights & Biases: {' '.join(str(error).split())}") from error


def _workspaces() -> tuple[ModuleType, ModuleType]:
    """The modules of workspaces and of panels.

    Raises:
      RunError: wandb-workspaces is not installed.
    """
    try:
        with warnings.catch_warnings():  # it still uses what pydantic 2 calls deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as panels
            import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise RunError(
            "the dashboard needs wandb-workspaces: pip install 'icl_align[dashboard]'"
        ) from error
    return workspaces, panels


# --------------------------------------------------------------------------------------- the panels


def build_workspace(options: DashboardConfig) -> Any:
    """The workspace as wandb-workspaces describes it; nothing is sent.

    Runs are grouped, by ablation or by name: every line and bar is a mean over one group.

    Args:
      options: with the entity named.

    Raises:
      RunError: wandb-workspaces is not installed.
    """
    workspaces, panels = _workspaces()
    from wandb_workspaces import expr

    from icl_align.metrics import QUANTITIES

    levels = [str(float(noise)) for noise in options.reward_noise]
    sections = {
        "Training": training_panels(panels),
        "Curves by learner": curve_panels(panels, QUANTITIES, levels),
        "Ablations": ablation_panels(panels, QUANTITIES, levels, options.compare),
        "Verdicts": verdict_panels(panels),
    }
    headline = [f"summary:{final_name(quantity, levels[0])}" for quantity in QUANTITIES]
    return workspaces.Workspace(
        entity=options.entity,
        project=options.project,
        name=_without_symbols(options.name or options.group or options.project),
        sections=[
            workspaces.Section(name=name, panels=content, is_open=True)
            for name, content in sections.items()
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=_is_group(options.group) if options.group else "",
            groupby=[
                expr.Config("ablation") if options.compare == "ablation" else expr.Metric("Name")
            ],
            order=[  # the verdicts after all trained runs, those newest first
                expr.Ordering(expr.Metric("JobType"), ascending=True),
                expr.Ordering(expr.Metric("CreatedTimestamp"), ascending=False),
            ],
            pinned_columns=headline,
        ),
    )


def _without_symbols(name: str) -> str:
    """A name that W&B takes for a workspace: it refuses symbols such as = and +."""
    return "".join("-" if unicodedata.category(letter)[0] == "S" else letter for letter in name)


def _is_group(group: str) -> str:
    """The filter for a group; what the grammar of filters would read is escaped."""
    escaped = re.sub(r"[^\w /.-]", lambda letter: f"\\U{ord(letter[0]):08x}", group)
    return f'Metric("Group") == "{escaped}"'


def training_panels(panels: ModuleType) -> list:
    """Loss, gradient norm, learning rate and speed against the training step."""
    return [panels.LinePlot(title=title, x="Step", y=[name]) for name, title in TRAINING.items()]


def curve_panels(panels: ModuleType, quantities: tuple[str, ...], levels: list[str]) -> list:
    """One row of plots for all learners at the first noise level, one for the transformer at all.

    Learners are drawn for one group of runs, the first of the list: of more, the lines would hide
    each other.
    """

    def plot(title, names, **settings):
        return panels.LinePlot(title=title, x="attempts", title_x="attempts", y=names, **settings)

    def words(quantity):
        return quantity.replace("_", " ")

    learners = [
        plot(
            f"{words(quantity)} by learner, reward noise {levels[0]} (first group of the list)",
            [curve_name(quantity, learner, levels[0]) for learner in LEARNERS],
            max_runs_to_show=1,
        )
        for quantity in quantities
    ]
    noise = [
        plot(
            f"{words(quantity)} of the transformer, all reward noises (first group of the list)",
            [curve_name(quantity, "transformer", level) for level in levels],
            max_runs_to_show=1,
        )
        for quantity in quantities
    ]
    return learners + noise


def ablation_panels(
    panels: ModuleType, quantities: tuple[str, ...], levels: list[str], compare: str
) -> list:
    """Bars of the headline numbers: means over the runs of a group, with their spread."""
    group = panels.Config("ablation") if compare == "ablation" else panels.Metric("Name")
    return [
        panels.BarPlot(
            title=f"{quantity.replace('_', ' ')}, reward noise {level}",
            metrics=[final_name(quantity, level)],
            groupby=group,
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_bars_to_show=50,
        )
        for level in levels
        for quantity in quantities
    ]


def verdict_panels(panels: ModuleType) -> list:
    """The table of verdicts, and its effects as bars."""
    return [
        panels.WeavePanelSummaryTable(table_name="verdicts", layout=panels.Layout(w=24, h=10)),
        panels.CustomChart(
            query={"summaryTable": {"tableKey": "verdicts"}},
            chart_name="wandb/bar/v0",
            chart_fields={"label": "judgement", "value": "effect"},
            chart_strings={"title": "effect of each judgement"},
        ),
    ]


if __name__ == "__main__":
    main()
