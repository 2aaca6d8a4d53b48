"""The tokens of dialogues, and where they stand.

    kind  question (Q)  [ instruction  answer (A)  check ] x T

Q and A are the longest of the kinds that are mixed; a shorter question or answer ends in PAD.
Instruction 0 is neutral; the others belong to a concept, INSTRUCTIONS_PER_CONCEPT to each.
"""

import dataclasses

import numpy as np

from icl_align.dialogue.kinds import KIND_OF_NAME
from icl_align.dialogue.kinds.kind import Kind
from icl_align.dialogue.options import KINDS, MIXED, TaskConfig

INSTRUCTIONS_PER_CONCEPT = 3
FLAWED, FINE = range(2)  # checks
UNCHECKED = 2  # in place of a check; its token is PAD


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Numbers of the tokens, from 0: PAD, kinds, instructions, checks, symbols.

    Attributes:
      num_kinds: those that are mixed; of a task of another kind, all.
      num_instructions: the neutral one and those of the concepts.
      num_symbols: of the kind with the most, S.
    """

    num_kinds: int
    num_instructions: int
    num_symbols: int

    pad: int = 0
    first_kind: int = 1

    @property
    def first_instruction(self) -> int:
        """The neutral instruction."""
        return self.first_kind + self.num_kinds

    @property
    def first_check(self) -> int:
        """FLAWED; FINE is the next."""
        return self.first_instruction + self.num_instructions

    @property
    def first_symbol(self) -> int:
        """Symbol 0."""
        return self.first_check + 2

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return self.first_symbol + self.num_symbols


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the parts of a dialogue stand.

    Attributes:
      question_length: Q.
      answer_length: A.
      rounds: T.
    """

    question_length: int
    answer_length: int
    rounds: int

    @property
    def round_length(self) -> int:
        """Tokens of a round."""
        return self.answer_length + 2

    @property
    def first_round(self) -> int:
        """Where the first round begins."""
        return 1 + self.question_length

    @property
    def length(self) -> int:
        """Tokens of a dialogue, L."""
        return self.first_round + self.rounds * self.round_length


def kinds_of(task: TaskConfig) -> tuple[Kind, ...]:
    """The kinds that are mixed."""
    return tuple(KIND_OF_NAME[name] for name in task.kinds)


def are_texts(task: TaskConfig) -> np.ndarray:
    """Which of the kinds that are mixed have texts for answers [k]."""
    return np.array([kind.is_text for kind in kinds_of(task)])


def vocabulary_of(task: TaskConfig) -> Vocabulary:
    """The tokens of a task."""
    num_symbols = max(kind.num_symbols for kind in kinds_of(task))
    # Those of the mixture come first, so that their tokens stay whatever kinds there are beside it.
    num_kinds = len(MIXED if {*task.kinds} <= {*MIXED} else KINDS)
    return Vocabulary(num_kinds, 1 + INSTRUCTIONS_PER_CONCEPT * task.num_concepts, num_symbols)


def token_names(task: TaskConfig) -> list[str]:
    """What each token stands for, by its number; nothing for PAD."""
    concepts = [f"concept {number}" for number in range(task.num_concepts)]
    if task.num_concepts == 2:
        concepts = ["careless", "careful"]
    each = range(1, INSTRUCTIONS_PER_CONCEPT + 1)
    instructions = ["neutral", *(f"{name} {number}" for name in concepts for number in each)]
    symbols = [f"symbol {number}" for number in range(vocabulary_of(task).num_symbols)]
    kinds = KINDS[: vocabulary_of(task).num_kinds]
    return ["", *kinds, *instructions, "flawed", "fine", *symbols]


def layout_of(task: TaskConfig) -> Layout:
    """Where the parts of a task's dialogues stand."""
    kinds = kinds_of(task)
    question_length = max(kind.question_length for kind in kinds)
    return Layout(question_length, max(kind.answer_length for kind in kinds), task.rounds)
