"""Times GCG on this machine, beside a plain implementation.

python -m benchmarks.dialogue.attacks [KEY=VALUE ...]

Steps a second, one request's step counted as one. The plain implementation is the published one
with the same network compiled: a loop over requests and steps, gradients and scores of one request
at a time, top tokens and replacements drawn by NumPy. The options are those of
python -m icl_align.train world=dialogue task=request. On one device.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from icl_align.config import Config
from icl_align.dialogue.attacks.options import AttackConfig
from icl_align.dialogue.attacks.prompts import FREE, NUM_FREE, natural_requests
from icl_align.dialogue.attacks.search import gcg
from icl_align.dialogue.attacks.targets import first_answer
from icl_align.dialogue.model import language_model
from icl_align.dialogue.vocabulary import vocabulary_of
from icl_align.running.command import show
from icl_align.running.compose import compose_config
from icl_align.running.errors import one_line_errors
from icl_align.running.terminal import Terminal

REPEATS = 5
PLAIN_REQUESTS = 8  # of one repeat; each takes as long as the next


class Case:
    """A network and requests, for both implementations.

    Args:
      config: options of the dialogue world.
      options: of the attack.
    """

    def __init__(self, config: Config, options: AttackConfig):
        self.task, self.options = config.task, options
        self.graph, self.state = nnx.split(language_model(config, nnx.Rngs(0)))
        self.steps = options.steps("gcg")
        keys = jax.random.split(jax.random.key(0), options.num_requests)
        self.questions = jax.jit(lambda k: natural_requests(self.task, k, harmful=True))(keys)
        self.allowed = np.ones(vocabulary_of(self.task).size, bool)

    def target(self, state):
        """What is searched for."""
        return first_answer(self.task, nnx.merge(self.graph, state))

    def compiled(self) -> list[float]:
        """Steps a second of `search.gcg`, over all requests at once."""
        options = self.options

        @jax.jit
        def program(state, questions, key):
            sizes = self.steps, options.candidates, options.top_k
            return gcg(self.task, self.target(state), questions, self.allowed, key, *sizes)

        def run(number):
            key = jax.random.key(number)
            return jax.block_until_ready(program(self.state, self.questions, key))

        return rates(run, self.steps * options.num_requests)

    def plain(self) -> list[float]:
        """Steps a second of a loop over requests and steps."""
        gradient = jax.jit(lambda state, one: self.target(state).gradient(one))
        score = jax.jit(lambda state, some: self.target(state).score(some))
        vocabulary, top_k = vocabulary_of(self.task), self.options.top_k
        symbols = np.arange(vocabulary.size) - vocabulary.first_symbol
        symbols[vocabulary.pad] = vocabulary.num_symbols

        def run(number):
            rng = np.random.default_rng(number)
            for question in np.asarray(self.questions[:PLAIN_REQUESTS]):
                for _ in range(self.steps):
                    ascent = np.asarray(gradient(self.state, jnp.asarray(question[None])))[0]
                    steepest = np.argsort(-ascent, axis=1)[:, :top_k]
                    places = rng.integers(NUM_FREE, size=self.options.candidates)
                    ranks = rng.integers(steepest.shape[1], size=self.options.candidates)
                    tried = np.repeat(question[None], self.options.candidates, axis=0)
                    tried[np.arange(len(tried)), FREE.start + places] = symbols[
                        steepest[places, ranks]
                    ]
                    question = tried[int(np.argmax(score(self.state, jnp.asarray(tried))))]

        return rates(run, self.steps * min(PLAIN_REQUESTS, len(self.questions)))


def rates(run, steps: int) -> list[float]:
    """Steps a second of REPEATS calls, after one that compiles."""
    run(0)
    found = []
    for number in range(REPEATS):
        start = time.perf_counter()
        run(1 + number)
        found.append(steps / (time.perf_counter() - start))
    return found


def main(arguments: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(arguments):
        show(__doc__.strip())
        return
    with one_line_errors():
        config = compose_config(["world=dialogue", "task=request", *arguments])
        case, terminal = Case(config, AttackConfig()), Terminal()
        found = {"plain": case.plain(), "compiled, all requests at once": case.compiled()}
        rows = [
            [name, f"{np.median(own):.0f}", f"{min(own):.0f} to {max(own):.0f}"]
            for name, own in found.items()
        ]
        title = f"GCG, {case.options.num_requests} requests, {case.options.candidates} candidates"
        terminal.table(title, ["implementation", "steps/s, median", "range"], rows)
        plain, compiled = (np.median(own) for own in found.values())
        terminal.say(f"compiled as a whole it makes {compiled / plain:.1f} times as many steps")


if __name__ == "__main__":
    main(sys.argv[1:])
