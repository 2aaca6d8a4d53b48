import json
import subprocess
import sys

import pytest

from benchmarks.__main__ import BenchmarkOptions, check_options, main
from benchmarks.contest import ROOT
from benchmarks.machine import version
from benchmarks.steps import EAGER, OURS
from icl_align.running.help import options_help


def test_help_lists_every_option_without_jax():
    code = "import sys; from benchmarks.__main__ import main; main(['--help'])"
    code += "; assert not {'jax', 'torch'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in options_help(BenchmarkOptions):
        assert line in done.stdout


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("configs=[huge]", "must be some of default, published"),
        ("rounds=0", "at least 1"),
        ("torch=fast", "one of none, eager, both"),
        ("round=3", "no such option"),
        ("folder=/proc/none", "must be a folder"),
    ],
)
def test_a_wrong_option_ends_in_one_line(argument, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["torch=none", argument])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert argument.partition("=")[0] in line


def test_pytorch_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("benchmarks.machine.version", lambda name: None)
    with pytest.raises(ValueError, match=r"\.\[bench\]"):
        check_options(BenchmarkOptions())
    assert check_options(BenchmarkOptions(torch="none"))


def test_the_command_measures_and_reports(tmp_path, capsys):
    with_torch = None not in (version("torch"), version("transformers"))
    mode = "eager" if with_torch else "none"
    arguments = ["configs=[smoke]", "rounds=2", "seconds=0.01", f"torch={mode}", "start=false"]
    arguments += ["reach=false", "growth=false", f"folder={tmp_path / 'report'}"]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "Training step: smoke" in out
    results = json.loads((tmp_path / "report" / "report.json").read_text())
    case = results["cases"]["smoke"]
    ours = case["contenders"][OURS]
    assert len(ours["turns"]) == 2
    assert ours["memory"]["peak"] >= ours["memory"]["start"] > 0
    assert 0 < case["flops"] / ours["step_seconds"] < case["peak"]["jax float32"]["per_second"]
    if with_torch:
        theirs = case["contenders"][EAGER]
        assert theirs["parameters"] == ours["parameters"]
        assert theirs["ratio"]["low"] <= theirs["ratio"]["median"] <= theirs["ratio"]["high"]
    assert str(tmp_path) not in (tmp_path / "report" / "report.md").read_text()
