"""The tables of a study of jailbreaks, as text."""

from typing import Any

from icl_align.dialogue.attacks.options import MODEL, MOST_CHECKS

SHORT = {
    "natural_evidence": "nat. evid.",
    "random_search": "random",
    "gcg_natural": "gcg nat.",
    "gcg_transfer": "transfer",
    "gcg_adaptive": "adaptive",
}

Table = tuple[str, list[str], list[list[str]]]


def tables(found: dict[str, Any]) -> list[Table]:
    """Title, header and rows of every table of what attacks.json holds."""
    attacks, labels = found["attacks"], found["defences"]
    header = ["defence", *(SHORT.get(name, name) for name in attacks)]

    def by_attack(title: str, of: dict[str, Any]) -> Table:
        return title, header, [[one, *(_cell(of[n][one]) for n in attacks)] for one in labels]

    made = [
        by_attack(f"{reader}: share of harmful requests it complies with, last answer", of)
        for reader, of in found["success"].items()
    ]
    beyond = found["beyond_asking_again"][MODEL]
    checks = list(beyond["none"])
    if checks:
        title = f"{MODEL}: what checks add to asking as often without one"
        rows = [[one, *(_cell(beyond[n][one]) for n in attacks)] for one in checks]
        made.append((title, header, rows))
    title = "flaw: success with the language model less that with the exact reader"
    made.append(by_attack(title, found["flaw"]))
    over = found["over_refusal"].values()
    rows = [[one, *(_cell(of[one]) for of in over), str(found["tokens"][one])] for one in labels]
    header = ["defence", *found["over_refusal"], "tokens"]
    made.append(("benign requests refused; tokens of a request", header, rows))
    return [*made, _of_prompts(found)]


def _of_prompts(found: dict[str, Any]) -> Table:
    def activation(name, source, place):
        return _cell({key: of[place] for key, of in found["activation"][name][source].items()})

    columns = [(source, place) for source in ("exact", "probe") for place in (0, 1)]
    rows = [
        [
            name,
            str(found["passes"].get(name, 0)),
            _cell(found["log_perplexity"][name]),
            *(activation(name, *column) for column in columns),
        ]
        for name in found["attacks"]
    ]
    title = "prompts: passes spent, nats a token; activation by both, before and after an own check"
    checks = [f"{source} {('before', 'after')[place]}" for source, place in columns]
    return title, ["attack", "passes", "nats", *checks], rows


def _cell(row: dict[str, float]) -> str:
    return f"{_short(row['mean'])}±{_short((row['high'] - row['low']) / 2)}"


def _short(value: float) -> str:
    """Two digits without the zero before the point."""
    return f"{value:z.2f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.1f}"


COMPARED = ("natural_evidence", "gcg_natural", "gcg")  # attacks


def in_all(found: dict[str, dict[str, Any]]) -> list[str]:
    """The attacks that are compared: of COMPARED those that every run has seen."""
    seen = [{*of["attacks"]} for of in found.values()]
    return [name for name in COMPARED if all(name in own for own in seen)] or ["none"]


def left_out(found: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Attack of COMPARED that some runs have seen -> the runs that have not."""
    missing = {
        name: [run for run, of in found.items() if name not in of["attacks"]] for name in COMPARED
    }
    return {name: runs for name, runs in missing.items() if 0 < len(runs) < len(found)}


def compared(found: dict[str, dict[str, Any]], said: dict[str, str]) -> Table:
    """Title, header and rows of several runs: success without a defence, the flaw in
    it, and success after own checks.

    Args:
      found: name of a run -> what its attacks.json holds.
      said: name -> the options that tell it from the others.
    """
    attacks = in_all(found)
    last = f"own_check {MOST_CHECKS}"
    rows = []
    for run, of in found.items():
        success = of["success"][MODEL]
        row = [run, said[run], str(of["step"]), f"{sum(of['behind']) / len(of['behind']):.4f}"]
        for name in attacks:
            checked = success[name].get(last)
            row += [
                _cell(success[name]["none"]),
                _cell(of["flaw"][name]["none"]),
                _cell(checked) if checked else "",
            ]
        rows.append(row)
    parts = ("", " flaw", " checked")
    each = [f"{SHORT.get(name, name)}{part}" for name in attacks for part in parts]
    title = (
        f"success without a defence, its flaw, success after {MOST_CHECKS} own checks; nats behind"
    )
    return title, ["run", "options", "step", "behind", *each], rows
