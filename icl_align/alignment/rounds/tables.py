"""The tables of own rounds, as text."""

from typing import Any

from icl_align.alignment.options import LEARNED, LEARNERS
from icl_align.alignment.rounds.gains import over_settings
from icl_align.alignment.rounds.quantities import BY_ANSWER

Table = tuple[str, list[str], list[list[str]]]
SHOWN = (0, 1, 2, 3, 5, 8, 12, 18)  # rounds


def tables(found: dict[str, Any]) -> list[Table]:
    """Title, header and rows of every table of what own_rounds.json holds."""
    rounds, learners = found["rounds"], found["learners"]
    shown = [n for n in SHOWN if n < rounds] + [rounds]
    header = ["learner", *map(str, shown), "converges"]
    made = []
    for quantity in BY_ANSWER:
        rows = []
        for name, of in learners.items():
            after = found["rounds_to_convergence"][name]
            said = [] if quantity != "refinement_error" else ["–" if after is None else str(after)]
            rows.append([name, *(_cell(of[quantity], n) for n in shown), *said])
        title = f"{quantity.replace('_', ' ')} after 0 to {rounds} own rounds"
        made.append((title, header if quantity == "refinement_error" else header[:-1], rows))
    rows = [
        [row["name"], *(_one(row[key]) for key in ("accuracy", "correlation", "gain"))]
        for row in found["critics"]
    ]
    title = "critics: pairs ranked right, correlation with the error, what the transformer gains"
    made.append((title, ["critic", "accuracy", "correlation", "gain"], rows))
    rows = [[row["name"], _one(row)] for row in found["summary"]]
    if "learned_critic" in found:
        for name, row in found["learned_critic"].items():
            rows.append([f"{name} of the learned critic on given attempts", _one(row)])
    made.append(("the transformer", ["", "mean"], rows))
    return made


def compared(found: dict[str, dict[str, Any]]) -> list[Table]:
    """A row for each run, and the correlation of gain and accuracy over the settings of all.

    Args:
      found: name of a run -> what its own_rounds.json holds.
    """
    rows = []
    for name, of in found.items():
        error = of["learners"][LEARNERS[0]]["refinement_error"]
        own = {row["name"]: row for row in of["critics"]}
        best = max(of["critics"], key=lambda row: row["gain"]["mean"])
        rows.append(
            [
                name,
                str(of["step"]),
                _cell(error, 0),
                _cell(error, -1),
                _one(own["direction, noise 0"]["gain"]),
                f"{_one(best['gain'])} {best['name']}",
                _one(own[LEARNED]["gain"]) if LEARNED in own else "",
                _one(own[LEARNED]["accuracy"]) if LEARNED in own else "",
                _one(of["correlation"]) if of["correlation"] else "",
            ]
        )
    header = ["run", "step", "first error", "last error", "gain: direction", "best", "learned"]
    made = [("own rounds", [*header, "its accuracy", "correlation"], rows)]
    over = over_settings([row for of in found.values() for row in of["critics"]])
    rows = [[name, _one(value)] for name, value in over.items() if value is not None]
    made.append(("gain and accuracy over all critics of all runs", ["", ""], rows))
    return made


def _cell(curve: dict[str, Any], place: int) -> str:
    return _one({side: curve[side][place] for side in ("mean", "low", "high")})


def _one(row: dict[str, Any]) -> str:
    return f"{row['mean']:z.3f}±{(row['high'] - row['low']) / 2:.3f}".replace("0.", ".")
