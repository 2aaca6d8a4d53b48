"""The pages: they build, every command and option on them exists, and the tutorial runs."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from icl_align.config import ConfigError, leaves
from icl_align.running.cli import check_command_line
from icl_align.running.compose import read_options, world_named
from icl_align.running.reevaluation import evaluation_config
from icl_align.world import WORLDS, options_of
from runs import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
PAGES.append(ROOT / "docs" / "tutorial.py")
FOLDERS = {"run_dir", "output_dir", "figure"}
VERDICTS = ("supported", "contradicted", "undecided")  # in the order of the tables
SCRIPTS = Path(sys.executable).parent


def commands(page):
    """What a page tells its reader to type: lines of its shell blocks, and `python -m ...`."""
    text = page.read_text()
    if page.suffix == ".py":
        text = re.sub(r"(?m)^# ?", "", text)
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    rest = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`((?:\.venv/bin/)?python -m [^`]+|\.venv/bin/[^`]+)`", rest)
    for line in lines:
        line = line.partition("  #")[0].strip()
        for part in [line] if "--command=" in line else line.split(" && "):
            if " " in part and not part.startswith(("#", "cat ", "cd ")):
                yield part


def words_of(command):
    """The words of a command, from the program that this project brings on."""
    if "--command=" in command:  # one that another program runs on a cluster
        command = shlex.split(command)[-1].partition("=")[2].rpartition("&& ")[2]
    words = shlex.split(command)
    if words[0] == "srun":
        words = words[next(i for i, word in enumerate(words) if "python" in word) :]
    return [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]


def check_module(module, arguments):
    """Raises where a command of this project would not take its arguments."""
    assert importlib.util.find_spec(module), f"no module {module}"
    options = [text for text in arguments if "=" in text]
    if "--help" in arguments or module in ("pytest", "experiments.ablations"):
        return
    if module in ("icl_align.train", "benchmarks.alignment.own_rounds"):
        check_command_line(arguments)
    elif module in ("benchmarks.dialogue", "benchmarks.dialogue.attacks"):
        check_command_line(["world=dialogue", *arguments])
    elif module in ("icl_align.evaluate", "icl_align.rounds"):
        compared = arguments if module == "icl_align.evaluate" else options
        own = [text for text in compared if text.partition("=")[0] not in FOLDERS]
        errors = []
        for world in WORLDS:  # of which the run may be
            try:
                evaluation_config(options_of(world)(), own)
            except ConfigError as error:
                errors.append(error)
        if len(errors) == len(WORLDS):
            raise errors[0]
    elif module == "icl_align.compare":
        from icl_align.compare import CompareOptions

        read_options(CompareOptions, options)
    elif module == "icl_align.attack":
        from icl_align.dialogue.attacks.options import AttackConfig

        read_options(AttackConfig, options).check_together()
    elif module == "icl_align.theory":
        from icl_align.alignment.theory.options import TheoryConfig

        read_options(TheoryConfig, options)
    elif module == "icl_align.dashboard":
        from icl_align.running.workspace import dashboard_options

        read_options(dashboard_options(world_named(arguments)), options)
    elif module == "benchmarks":
        from benchmarks.__main__ import BenchmarkOptions

        read_options(BenchmarkOptions, options)
    elif module == "experiments.readings":
        from experiments.options import CampaignOptions

        read_options(CampaignOptions, options)
    elif module == "experiments":
        from experiments.__main__ import COMMANDS, check_names, load_all
        from experiments.options import CampaignOptions

        own = [option for option in options if not option.startswith("hydra")]
        every = load_all(read_options(CampaignOptions, own).scales())
        names = [text for text in arguments if "=" not in text and text != "-m"]
        if not {*names} <= {*COMMANDS}:
            check_names(names, tuple(name for of_world in every.values() for name in of_world))
    else:
        assert module == "venv", f"nothing checks {module}"


def check(command):
    """Raises where a command does not exist."""
    program, *arguments = words_of(command)
    if program.rpartition("/")[2] in ("python", "python3"):
        assert arguments[0] == "-m"
        check_module(arguments[1], arguments[2:])
    elif program.endswith("/pip"):
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\.\[(.*?)\]", command):
            assert extra in known["optional-dependencies"]
    elif program == ".venv/bin/jupyter":
        assert "jupyterlab" in (ROOT / "docs" / "tutorial.py").read_text()  # is said to be needed
    else:
        name = program.removeprefix(".venv/bin/")
        assert (SCRIPTS / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_exists(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in commands(page):
        try:
            check(command)
        except Exception as error:
            raise AssertionError(f"{page.name}: {command}") from error


def test_wrong_commands_would_be_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (
        "python -m icl_align.nothing",
        "python -m icl_align.train train.stepps=3",
        "python -m icl_align.train +ablation=nothing",
        "python -m icl_align.evaluate run_dir=DIR train.steps=3",
        "python -m icl_align.compare RUN fig=a.pdf",
        "python -m experiments head",
        "srun --nodes=2 .venv/bin/python -m icl_align.train num_seed=2",
        ".venv/bin/pip install -e '.[nothing]'",
        ".venv/bin/nothing",
    ):
        with pytest.raises((AssertionError, ConfigError, ModuleNotFoundError)):
            check(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_on_a_page_exists(page):
    keys = {key for world in WORLDS for key, _, _ in leaves(options_of(world))}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    spans = " ".join(re.findall(r"`([^`\n]+)`", page.read_text()))
    for named in re.findall(r"(?:^|\s)([a-z_]+\.[a-z_.]+)(?:=\S*)?(?=\s|$)", spans):
        if named.partition(".")[0] in sections and not named.endswith(
            (".py", ".yaml", ".json", ".png", ".")
        ):
            assert named in keys, f"{page.name}: {named}"


def test_the_first_page_is_read_in_ten_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_of_the_pages_outside_the_site_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert target.startswith("https://") or (ROOT / target).exists(), target


def _verdicts():
    return json.loads((ROOT / "docs" / "claims" / "verdicts.json").read_text())


def _cell(row):
    return "{effect:z.3f} [{low:z.3f}, {high:z.3f}]".format(**row)


def test_the_verdicts_on_the_pages_are_those_of_the_campaign():
    primary = {row["claim"]: row for row in _verdicts() if row["primary"]}
    page = (ROOT / "docs" / "claims.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    told = {cells[0].strip("[").partition("]")[0]: cells for cells in lines if "](" in cells[0]}
    assert told.keys() == primary.keys()
    for name, (_, prediction, effect, predicted, seeds, verdict) in told.items():
        row = primary[name]
        assert row["judgement"].partition(": ")[2] == prediction
        assert (effect, predicted) == (_cell(row), row["predicted"])
        assert (int(seeds), verdict) == (len(row["values"]), f"**{row['verdict']}**")
    undecided = {name: row for name, row in primary.items() if row["verdict"] == "undecided"}
    open_ones = {cells[0]: cells for cells in lines if cells[0] in undecided}
    assert open_ones.keys() == undecided.keys()
    for name, (_, effect, predicted, power, needed, *_) in open_ones.items():
        row = undecided[name]
        assert (effect, predicted) == (_cell(row), row["predicted"])
        assert power == f"{row['power']:.2f}, {len(row['values'])}"
        assert needed == str(row["needed_seeds"])


def test_counts_of_verdicts_on_the_pages_are_those_of_the_campaign():
    counts = Counter((row["world"], row["primary"], row["verdict"]) for row in _verdicts())
    page, readme = (ROOT / "docs" / "claims.md").read_text(), (ROOT / "README.md").read_text()
    for world, label, short in (
        ("alignment", "responses with rewards", "rewards"),
        ("dialogue", "dialogues", "dialogues"),
    ):
        primary, other = (
            [counts[world, is_primary, verdict] for verdict in VERDICTS]
            for is_primary in (True, False)
        )
        said = f"{', '.join(map(str, primary))} | {', '.join(map(str, other))} |"
        assert re.search(rf"^\| {label} \| .* \| {said}$", page, re.MULTILINE)
        cells = "".join(f" {number}: [^|]*\\|" for number in primary)
        assert re.search(rf"^\| {short} \|{cells}$", readme, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "docs/found.md"])
def test_judged_intervals_on_a_page_are_those_of_the_campaign(page):
    """Of a row that names a verdict, in whichever direction its words count."""
    known = {_cell(row) for row in _verdicts() if row["values"]}
    known |= {
        _cell({"effect": -row["effect"], "low": -row["high"], "high": -row["low"]})
        for row in _verdicts()
        if row["values"]
    }
    interval = re.compile(r"-?\d+\.\d{3} \[-?\d+\.\d{3}, -?\d+\.\d{3}\]")
    judged = [
        line
        for line in (ROOT / page).read_text().splitlines()
        if re.search(r"\| (rewards|dialogues|holds|open|does not hold)\b", line)
    ]
    found = [one for line in judged for one in interval.findall(line)]
    assert len(found) > (20 if page.endswith("found.md") else 1)
    assert [one for one in found if one not in known] == []


def test_the_site_builds_without_a_warning(tmp_path):
    built = subprocess.run(
        [SCRIPTS / "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    pages = {path.parent.name for path in (tmp_path / "site").rglob("index.html")}
    assert {"tutorial", "reference", "report"} <= pages
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    import icl_align

    for name in icl_align.__all__:
        assert f'id="icl_align.api.{name}"' in reference
    for file in (tmp_path / "site").rglob("index.html"):  # nothing is fetched from elsewhere
        assert not re.search(r'<(?:script|img|link)[^>]+(?:src|href)="https?:', file.read_text())


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "tutorial.py").read_text()
    assert text.count('SCALE = "+scale=small"') == 1
    monkeypatch.chdir(tmp_path)
    code = text.replace('SCALE = "+scale=small"', 'SCALE = "+scale=smoke"')
    exec(compile(code, "tutorial.py", "exec"), {"__name__": "tutorial"})
    printed = capsys.readouterr().out
    assert "without head 1   regret" in printed
    assert "model.activation" in printed  # the options that differ
    picture = tmp_path / "runs" / "tutorial" / "agreement.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_the_tutorial_is_a_notebook(tmp_path):
    jupytext = pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    shutil.copy(ROOT / "docs" / "tutorial.py", tmp_path)
    notebook = jupytext.read(tmp_path / "tutorial.py")
    jupytext.write(notebook, tmp_path / "tutorial.ipynb")
    nbformat.validate(nbformat.read(tmp_path / "tutorial.ipynb", as_version=4))
    kinds = {cell.cell_type for cell in notebook.cells}
    assert kinds == {"markdown", "code"}
