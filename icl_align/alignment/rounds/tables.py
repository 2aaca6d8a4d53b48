"""The tables of own rounds, as text."""

from typing import Any

from icl_align.alignment.options import FORMULAS, LEARNED, LEARNERS
from icl_align.alignment.rounds.gains import over_settings
from icl_align.alignment.rounds.quantities import BY_ANSWER

Table = tuple[str, list[str], list[list[str]]]
SHOWN = (0, 1, 2, 3, 5, 8, 12, 18)  # rounds


def tables(found: dict[str, Any]) -> list[Table]:
    """Title, header and rows of every table of what own_rounds.json holds."""
    rounds, learners = found["rounds"], found["learners"]
    shown = [n for n in SHOWN if n < rounds] + [rounds]
    header = ["learner", *map(str, shown), "converges"]
    asked = f"{found['given_attempts']} given attempts, critic {found['critic']}"
    made = []
    for quantity in BY_ANSWER:
        rows = []
        for name, of in learners.items():
            said = [_settles(found, name)] if quantity == "refinement_error" else []
            rows.append([name, *(_cell(of[quantity], n) for n in shown), *said])
        title = f"{quantity.replace('_', ' ')} after 0 to {rounds} own rounds, {asked}"
        made.append((title, header if quantity == "refinement_error" else header[:-1], rows))
    rows = [
        [
            row["name"],
            *(_one(row[key]) for key in ("accuracy", "correlation", "accuracy_met", "gain")),
        ]
        for row in found["critics"]
    ]
    title = (
        "critics: pairs ranked right and correlation, on the same answers for all; pairs ranked "
        "right in the rounds they reward; what the transformer gains in them"
    )
    made.append((title, ["critic", "accuracy", "correlation", "met", "gain"], rows))
    rows = [[row["name"], _whole(row)] for row in found["summary"]]
    if found["threshold"] is None:
        rows.append(["threshold of a useful critic", "none"])
    for critic in found.get("learned_critics", []):
        for key in ("accuracy", "correlation"):
            rows.append([f"{key} on given attempts: {critic['name']}", _whole(critic[key])])
    made.append(("the transformer", ["", "mean, 95% interval"], rows))
    return made


def _settles(found: dict[str, Any], name: str) -> str:
    """Rounds to convergence, and in how many seeds the error settles at all."""
    of = found["rounds_to_convergence"][name]
    settled = sum(rounds < found["rounds"] for rounds in of["by_seed"])
    return f"{of['mean']:.0f} ({settled} of {len(of['by_seed'])} settle)"


def compared(found: dict[str, dict[str, Any]]) -> list[Table]:
    """A row for each run, and the correlation of gain and accuracy over the critics of all.

    Args:
      found: name of a run -> what its own_rounds.json holds.
    """
    rows = []
    for name, of in found.items():
        transformer = of["learners"][LEARNERS[0]]
        gains = {row["name"]: row for row in of["critics"]}
        learned = gains.get(LEARNED)
        rows.append(
            [
                name,
                of["critic"],
                _cell(transformer["refinement_error"], 0),
                _cell(transformer["refinement_error"], -1),
                _cell(transformer["movement"], -1),
                _cell(transformer["agreement"], -1),
                *(_one(gains[critic]["gain"]) for critic in FORMULAS),
                *(_one(learned[key]) if learned else "" for key in ("gain", "accuracy")),
                _one(of["correlation"]) if of["correlation"] else "",
            ]
        )
    header = ["run", "critic", "first error", "last error", "movement", "agreement"]
    header += [f"gain: {critic}" for critic in (*FORMULAS, LEARNED)] + ["accuracy: learned"]
    made = [("own rounds of the transformers", [*header, "correlation"], rows)]
    over = over_settings([of["critics"] for of in found.values()])
    rows = [[name, _whole(value)] for name, value in over.items() if value is not None]
    title = "gain in the last round and accuracy, over all critics of all runs"
    made.append((title, ["", "mean, 95% interval"], rows))
    return made


def _cell(curve: dict[str, Any], place: int) -> str:
    return _one({side: curve[side][place] for side in ("mean", "low", "high")})


def _whole(row: dict[str, Any]) -> str:
    return f"{row['mean']:z.3f} [{row['low']:z.3f}, {row['high']:z.3f}]"


def _one(row: dict[str, Any]) -> str:
    return f"{row['mean']:z.3f}±{(row['high'] - row['low']) / 2:.3f}"
