"""What users stumble over: starts at once, full disks, damaged files, settings of other programs,
signals at odd moments. Each ends in one line, and nothing that was saved is lost.
"""

import contextlib
import errno
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from icl_align.alignment.options import Options
from icl_align.config import ConfigError
from icl_align.running.cli import check_command_line, with_quoted_folders
from icl_align.running.curves_file import read_curves
from icl_align.running.errors import one_line_errors
from icl_align.running.files import DamagedFileError, why_not_written
from icl_align.running.metrics_file import MetricsFile, read_rows
from icl_align.running.new_folder import RUN, SWEEP, command_to_go_on, make_new_folder, quoted
from icl_align.running.run import run
from icl_align.running.run_folder import saved_config
from runs import OFF, ROOT, finish, saved_steps, start, tiny, wait_for, wandb_records

TOY = ["world=toy", "evaluation.num_contexts=8", "train.steps=5", "train.log_every=1"]
LONG = TOY[:2]  # with steps of its own


def one_line(err):
    [line] = err.splitlines()
    assert "Traceback" not in line
    return line


# --------------------------------------------------------------------------- folders and commands


def test_starts_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, parent in ((RUN, "runs"), (SWEEP, "sweeps")):
        folders = [make_new_folder(key, now=0.0) for _ in range(3)]
        day = tmp_path / parent / "1970-01-01"
        assert [day / name for name in ("00-00-00", "00-00-00_2", "00-00-00_3")] == [
            folder.absolute() for folder in folders
        ]


@pytest.mark.slow
def test_three_starts_together_all_run_and_say_where_first(toy, tmp_path):
    starts = [start(*TOY, OFF, cwd=tmp_path, env_path=toy) for _ in range(3)]
    outcomes = [finish(process) for process in starts]
    assert [status for status, _, _ in outcomes] == [0, 0, 0], outcomes
    first_lines = {out.splitlines()[0] for _, out, _ in outcomes}
    folders = {str(path.parent) for path in tmp_path.glob("runs/*/*/curves.json")}
    assert first_lines == {f"run folder: {folder}" for folder in folders}
    assert len(folders) == 3


@pytest.mark.parametrize(
    "name", ["plain", "größe", "a b", "x=1,y", "it's", "back\\slash", "end\\", "a\\'b", "(1)"]
)
def test_a_folder_of_any_name_is_taken_as_it_is_typed(name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    [argument] = with_quoted_folders([f"{RUN}=/tmp/{name}"])
    parsed = OverridesParser.create().parse_override(argument)
    assert parsed.value() == f"/tmp/{name}"
    command = shlex.split(command_to_go_on(ROOT / name))
    assert OverridesParser.create().parse_override(command[-1]).value() == str(ROOT / name)
    assert OverridesParser.create().parse_override(f"a={quoted(name)}").value() == name


def test_the_command_that_a_stopped_run_names_goes_on_with_it(toy, tmp_path):
    long = ["train.steps=150", "train.checkpoint_every=1"]
    process = start(*LONG, *long, "train.log_every=1", OFF, cwd=tmp_path, env_path=toy)
    wait_for(lambda: any(saved_steps(path) for path in tmp_path.glob("runs/*/*")), process)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    command = one_line(err).partition("to go on: ")[2]
    python, *arguments = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": str(toy)}
    again = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert shutil.which(python) == sys.executable
    assert again.returncode == 0, again.stderr
    assert "going on at step" in again.stdout


# ------------------------------------------------------------------------------------------ signals


def test_a_signal_while_the_command_starts_is_one_line(toy, tmp_path):
    # JAX is imported after Hydra has made the folder; until then there is nothing to save.
    process = start(*TOY, OFF, cwd=tmp_path, env_path=toy)
    wait_for(lambda: any(tmp_path.glob("runs/*/*")), process)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "stopped by SIGINT" in one_line(err)


def test_a_second_signal_does_not_wait(toy, tmp_path):
    long = ["train.steps=1000000", "train.checkpoint_every=1000000", "train.log_every=1"]
    process = start(*LONG, *long, OFF, f"{RUN}={tmp_path}/run", cwd=tmp_path, env_path=toy)
    wait_for(lambda: read_rows(tmp_path / "run" / "metrics.jsonl"), process)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "stopped" in one_line(err)


def test_a_signal_in_a_sweep_ends_it(toy, tmp_path):
    long = ["train.steps=1000000", "train.log_every=1", "seed=1,2"]
    process = start("-m", *LONG, *long, OFF, f"{SWEEP}={tmp_path}/s", cwd=tmp_path, env_path=toy)
    wait_for(lambda: read_rows(tmp_path / "s" / "0" / "metrics.jsonl"), process)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "to go on: the same command with" in one_line(err)
    assert not (tmp_path / "s" / "1").exists()


# ------------------------------------------------------------------------- settings of other programs


@pytest.mark.parametrize(
    "setting",
    [
        {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
        {"JAX_NUMPY_RANK_PROMOTION": "raise", "MPLBACKEND": "nonsense"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=lambda setting: ",".join(setting),
)
def test_settings_for_other_programs_have_no_effect(setting, toy, tmp_path, monkeypatch):
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    status, out, err = finish(start(*TOY, OFF, cwd=tmp_path, env_path=toy))
    assert (status, err) == (0, "")
    assert "distance after 2 points" in out


@pytest.mark.slow
def test_jax_settings_have_no_effect_on_the_alignment_world(tmp_path, monkeypatch):
    from runs import TINY

    for name, value in {
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }.items():
        monkeypatch.setenv(name, value)
    status, _, err = finish(start(*TINY, OFF, "train.steps=2", cwd=tmp_path))
    assert (status, err) == (0, "")


def test_a_platform_that_is_not_there_is_one_line(toy, tmp_path):
    process = start(*TOY, OFF, cwd=tmp_path, env_path=toy, platform="cuda")
    status, _, err = finish(process)
    assert status == 2
    assert "JAX_PLATFORMS=cuda" in one_line(err)
    assert not list(tmp_path.glob("runs/*/*"))


def test_without_a_home_wandb_keeps_to_itself(toy, tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    status, _, err = finish(start(*TOY, cwd=tmp_path, env_path=toy))
    assert (status, err) == (0, "")


# ------------------------------------------------------------------------------------ damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    config = tiny("train.steps=6", "train.log_every=2", "train.checkpoint_every=3")
    run(config, folder)
    return folder, config


@pytest.fixture
def copied(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    return folder


def test_curves_that_were_cut_off_are_said_and_made_again(whole, copied, capsys):
    path = copied / "curves.json"
    good = json.loads(path.read_text())
    path.write_text(path.read_text()[:1000])
    run(whole[1], copied)
    assert f"{path} is no JSON" in one_line(capsys.readouterr().err)
    assert json.loads(path.read_text()) == good


def test_a_picture_that_is_gone_is_drawn_again(whole, copied):
    (copied / "curves.png").unlink()
    run(whole[1], copied)
    assert (copied / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_configuration_that_was_cut_off_is_found_in_the_checkpoints(whole, copied):
    path = copied / ".hydra" / "config.yaml"
    for text in ("", path.read_text()[:300], "\x00\x01: [", "- a list"):
        path.write_text(text)
        assert saved_config(copied) == whole[1]
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        saved_config(copied)


@pytest.mark.parametrize("damage", [b"nonsense\n", b'{"step": 3, "tr\n', b"\xff\xfe\n", b"[1]\n"])
def test_a_bad_line_of_the_metrics_is_said_and_the_rest_is_kept(damage, tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    rows = [{"step": step, "train/loss": 1.0} for step in (1, 2, 3)]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(lines[0] + damage + lines[1] + lines[2] + b'{"step": 4, "tra')
    assert read_rows(path) == rows
    metrics = MetricsFile(path, said.append)
    metrics.log({"step": 4, "train/loss": 1.0})
    metrics.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]
    assert "damaged in line 2" in said[0]
    assert damage in (tmp_path / "metrics_damaged_1.jsonl").read_bytes()


def test_metrics_that_are_gone_are_said_and_the_curves_written_again(whole, copied, capsys):
    (copied / "metrics.jsonl").unlink()
    run(whole[1], copied)
    assert "the rows of the first 6 steps cannot be made again" in one_line(capsys.readouterr().err)
    expected = [row for row in read_rows(whole[0] / "metrics.jsonl") if "attempts" in row]
    assert read_rows(copied / "metrics.jsonl") == expected


def test_a_damaged_checkpoint_is_one_line(copied):
    for path in (copied / "checkpoints" / "6" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    status, _, err = finish(start(f"{RUN}={copied}"))
    assert status == 0
    assert "checkpoint 6 is damaged" in one_line(err)


# ---------------------------------------------------------------------------------------- full disks


def test_a_full_disk_is_recognised_in_the_words_of_every_library(tmp_path):
    class OfWandb(Exception):
        __module__ = "wandb.errors"

    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = ValueError("RESOURCE_EXHAUSTED: Failed writing: x: Failed to write 3 bytes")
    for error in (full, wrapped, OSError(errno.EDQUOT, "Disk quota exceeded")):
        assert why_not_written(error, tmp_path)
    for error in (ValueError("RESOURCE_EXHAUSTED: out of memory"), OfWandb("lost"), KeyError("x")):
        assert why_not_written(error, tmp_path) is None


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize("kilobytes", [300, 600])
def test_wherever_space_ends_it_is_one_line_and_the_run_goes_on(kilobytes, toy, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        long = ["train.steps=60", "train.checkpoint_every=1", "train.keep_checkpoints=100"]
        command = [*LONG, *long, OFF, f"{RUN}={small}/run"]
        status, _, err = finish(start(*command, cwd=tmp_path, env_path=toy))
        assert status == 1
        assert "No space left on device; what was saved is kept; to go on:" in one_line(err)
        shutil.copytree(small / "run", tmp_path / "run")
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    status, _, err = finish(start(f"{RUN}={tmp_path}/run", cwd=tmp_path, env_path=toy))
    assert (status, err) == (0, "")


# ------------------------------------------------------------------------------------ W&B, messages


@pytest.mark.slow
def test_the_newest_offline_folder_has_the_whole_run(toy, tmp_path):
    folder = tmp_path / "run"
    long = ["train.steps=150", "train.checkpoint_every=1", "train.log_every=1", f"{RUN}={folder}"]
    process = start(*LONG, *long, cwd=tmp_path, env_path=toy)
    wait_for(lambda: saved_steps(folder), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    status, _, err = finish(start(f"{RUN}={folder}", cwd=tmp_path, env_path=toy))
    assert status == 0, err
    newest = (folder / "wandb" / "latest-run").resolve()
    for old in folder.glob("wandb/offline-run-*"):
        if old.resolve() != newest:
            shutil.rmtree(old)
    steps = []
    for record in wandb_records(folder):
        items = {
            item.key or "/".join(item.nested_key): item.value_json for item in record.history.item
        }
        if "train/loss" in items:
            steps.append(int(items["_step"]))
    assert steps == list(range(1, 151))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.lr=0.1"], "did you mean train.learning_rate?"),
        (["lr=0.1"], "did you mean train.learning_rate?"),
        (["steps=3"], "did you mean train.steps?"),
        (["num_layers=3"], "did you mean model.num_layers?"),
        (["device=gpu"], "JAX_PLATFORMS"),
        (["devices.gpu=1"], "JAX_PLATFORMS"),
        (["--num_seeds", "3"], "as in num_seeds=VALUE"),
        (["--num-seeds=3"], "as in num_seeds=VALUE"),
        (["wandb.name=größe"], "quoted: \"wandb.name='größe'\""),
        (["task.dim=1"], "must be at least 2 with loss.score=cosine"),
    ],
)
def test_what_was_meant_is_said(arguments, words):
    with pytest.raises(ConfigError) as error:
        check_command_line(arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_help_may_be_cut_off_by_its_reader():
    command = f"{shlex.quote(sys.executable)} -m icl_align.train --help | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("Trains")
    assert done.stderr == ""


def test_a_choice_is_described_to_the_end_of_its_sentence():
    from icl_align.running.help import help_text

    assert not any(line.endswith(("et al", "e.g")) for line in help_text("alignment").splitlines())


def test_an_evaluation_can_be_written_elsewhere(copied, tmp_path):
    (tmp_path / "file").write_text("")
    option = ["evaluation.num_contexts=4"]
    status, _, err = finish(
        start(f"run_dir={copied}", f"output_dir={tmp_path}/file/x", module="icl_align.evaluate")
    )
    assert status == 2
    assert "output_dir=" in one_line(err)
    elsewhere = tmp_path / "elsewhere"
    status, _, err = finish(
        start(f"run_dir={copied}", f"output_dir={elsewhere}", *option, module="icl_align.evaluate")
    )
    assert status == 0, err
    assert {path.name for path in elsewhere.iterdir()} == {"curves.json", "curves.png"}
    assert not (copied / "evaluations").exists()


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "null", '{"attempts": [0, 1', "3"])
def test_a_curves_file_that_holds_something_else_is_named(content, tmp_path):
    path = tmp_path / "curves.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match=str(path)):
        read_curves(path, Options.measures)
    assert read_curves(tmp_path / "none.json", Options.measures) is None


def test_a_file_that_cannot_be_written_is_one_line_in_every_command(capsys):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "figure.pdf")
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise full
    assert end.value.code == 1
    assert one_line(capsys.readouterr().err).endswith("figure.pdf: No space left on device")
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError


def test_the_constraints_pin_all_that_the_extras_install():
    """But for those that they say they do not."""
    text = (ROOT / "constraints.txt").read_text()
    pinned = {
        canonicalize_name(line.partition("==")[0]) for line in text.splitlines() if "==" in line
    }
    seen, todo = set(), [Requirement("icl_align[test,docs,dashboard,joblib,ray,submitit,optuna]")]
    while todo:
        needed = todo.pop()
        key = canonicalize_name(needed.name), *sorted(needed.extras)
        if key in seen:
            continue
        seen.add(key)
        for extra in needed.extras or {""}:
            for line in importlib.metadata.requires(needed.name) or []:
                requirement = Requirement(line)
                if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                    todo.append(requirement)
    missing = {name for name, *_ in seen} - pinned - {"icl-align"}
    assert not missing
    for extra in ("cuda", "tpu", "bench"):
        assert extra in text.partition("==")[0]


def test_a_slip_in_a_file_of_conf_is_one_line(toy, tmp_path):
    conf = shutil.copytree(toy, tmp_path / "checkout") / "conf" / "ablation" / "slip.yaml"
    conf.write_text("# @package _global_\nmodel:\n  num_heads: 8\n   activation: relu\n")
    status, _, err = finish(start(*TOY, "+ablation=slip", cwd=tmp_path, env_path=conf.parents[2]))
    assert status == 2
    assert f"{conf}: line 4: " in one_line(err)
