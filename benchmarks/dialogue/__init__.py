"""The dialogue world as the benchmarks see it; `python -m benchmarks.dialogue` times roll-outs."""

from benchmarks.worlds import Subject
from icl_align.dialogue.options import Options
from icl_align.dialogue.vocabulary import layout_of, vocabulary_of


def outside_trunk(config: Options) -> dict[str, int]:
    """Operations of the products outside the trunk: embedding and read-out, 2 L V M each.

    Raises:
      ValueError: the model makes a pass for every prefix, which the formula does not cover.
    """
    model, task = config.model, config.task
    if not model.causal:
        raise ValueError("the formula is for one pass over all tokens")
    products = 2 * layout_of(task).length * vocabulary_of(task).size * model.width
    return {"embedding": products, "read_out": products}


SUBJECT = Subject(
    outside_trunk,
    of_data=("embedding",),
    axes={"task.rounds": (4, 8, 16, 32, 64)},
    labels={"task.rounds": "rounds T"},
)
