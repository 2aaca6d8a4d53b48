"""What a run says where there is no terminal."""

from icl_align.running import terminal as terminal_module
from icl_align.running.terminal import Terminal


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(terminal_module.time, "monotonic", lambda: clock[0])
    terminal = Terminal(job="3")
    for step in range(0, 101, 10):  # ten steps take five seconds
        terminal.progress("training", float(step), 100.0, f"loss {step}")
        clock[0] += 5.0
    assert capsys.readouterr().out.splitlines() == [
        "job 3: training 60/100 · loss 60 · 20 s left",
    ]
    terminal.warn("a word")
    assert capsys.readouterr().err == "icl_align: job 3: a word\n"
