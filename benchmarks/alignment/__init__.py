r"""The alignment world's own part of the benchmarks.

Outside the trunk, for one context of N attempts, whose T tokens have F features, with M trained
predictions of dimension d:

    embedding    2 T F D
    read_out     2 M D d
    scores       2 M N d               ranking losses only
"""

from typing import Any

from benchmarks.worlds import Subject
from icl_align.alignment.options import RANKING_LOSSES, Options
from icl_align.alignment.tokens import TOKEN_LAYOUTS, num_tokens


def outside_trunk(config: Options) -> dict[str, int]:
    """Operations of the products outside the trunk, by part.

    Raises:
      ValueError: the model makes a pass for every prefix, which the formula does not cover.
    """
    model, task, loss = config.model, config.task, config.loss
    if not (model.causal or model.sees_future):
        raise ValueError("the formula is for one pass over all tokens")
    predictions = config.last_attempts - loss.min_attempts + 1
    features = TOKEN_LAYOUTS[model.tokens](task).num_features
    ranks = loss.name in RANKING_LOSSES
    return {
        "embedding": 2 * num_tokens(model, config.last_attempts) * features * model.width,
        "read_out": 2 * predictions * model.width * task.dim,
        "scores": 2 * predictions * task.num_responses * task.dim if ranks else 0,
    }


def measure_reach(*arguments: Any) -> dict[str, Any]:
    """`reach.measure_reach`, imported where it is needed."""
    from benchmarks.alignment import reach

    return reach.measure_reach(*arguments)


SUBJECT = Subject(
    outside_trunk,
    of_data=("embedding", "scores"),
    workers={
        "refining": ("jax_worker", "Refining"),
        "torch": ("torch_worker", "Training"),
    },
    rival="alignment:torch",
    axes={"task.num_responses": (10, 20, 40, 80, 160)},
    labels={"task.num_responses": "attempts N"},
    reach=measure_reach,
)
