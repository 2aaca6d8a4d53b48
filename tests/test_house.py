"""Where things are: what may import what, and how large a file may grow before one looks twice."""

import shutil
import subprocess
import sys
import tomllib

from icl_align.world import WORLDS
from runs import ROOT

CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
}


def modules(package):
    """Dotted names of the modules of a package, without its own packages."""
    folder = ROOT / package.replace(".", "/")
    return {f"{package}.{file.stem}" for file in folder.glob("*.py")} - {f"{package}.__init__"}


def lint(folder):
    program = "import sys; from importlinter.cli import lint_imports as lint; sys.exit(lint(no_cache=True))"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_contracts_of_imports_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


def test_a_circle_and_an_effect_in_a_pure_module_are_found(tmp_path):
    for name in ("experiments", "benchmarks", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "icl_align", tmp_path / "icl_align")
    slices = tmp_path / "icl_align" / "running" / "slices.py"
    slices.write_text(slices.read_text() + "\nimport os\nimport icl_align.running.training\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert len(broken) == 2, done.stdout


def test_the_contracts_speak_of_every_world_and_of_every_module_of_a_world():
    unknown = CONTRACTS["What runs knows no world but through the registry"]
    assert set(unknown["forbidden_modules"]) == {f"icl_align.{world}" for world in WORLDS}
    knows_nothing = CONTRACTS[
        "A world knows nothing of what runs it, but for the theory, a study of runs"
    ]
    own = set().union(*(modules(f"icl_align.{world}") for world in WORLDS))
    named = set(knows_nothing["source_modules"])
    assert own <= named
    # The others are packages of a world, with all that is in them.
    assert all((ROOT / name.replace(".", "/") / "__init__.py").exists() for name in named - own)
    assert "icl_align.running" in knows_nothing["forbidden_modules"]


def test_no_file_is_too_long_to_be_read_in_one_sitting():
    lengths = {
        file: len(file.read_text().splitlines())
        for package in ("icl_align", "experiments", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
    }
    assert {str(file): n for file, n in lengths.items() if n > 400} == {}
