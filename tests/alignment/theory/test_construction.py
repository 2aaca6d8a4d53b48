"""Facts of the networks built by hand: they take the gradient step of the project's loss, exactly."""

import dataclasses
import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings

from icl_align.alignment.losses import bradley_terry, plackett_luce
from icl_align.alignment.options import ModelConfig, Options, TaskConfig
from icl_align.alignment.theory.assembly import Network, run
from icl_align.alignment.theory.construction import (
    SHARP,
    bradley_terry_network,
    plackett_luce_network,
    several_queries_network,
)
from icl_align.alignment.theory.exactness import (
    as_context,
    network_for,
    random_problem,
    relative_errors,
)
from icl_align.running.training import init_state, network_of

TOGETHER = 4  # problems of one shape, run by one program
# The shapes (d, N, k, Q) of most tests, one for each network; Q is None where it has one query.
SHAPES = {
    "bradley_terry": (3, 2, 3, None),
    "plackett_luce": (3, 5, 2, None),
    "several_queries": (3, 3, 2, 3),
}
all_networks = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
single_query_networks = pytest.mark.parametrize("num_responses", [2, 5])


# ---------------------------------------------------------------------------------- the references


def boltzmann_average(prediction, responses):
    """The mean of the responses under the softmax of their scores -||y_hat - y||^2."""
    scores = -np.sum((prediction - responses) ** 2, axis=-1)
    weights = np.exp(scores - scores.max())
    return weights @ responses / weights.sum()


def ranking_update(prediction, responses, rewards):
    """sum_i ( y_tau(i) - sum_{j>=i} beta_ij y_tau(j) ), as in the paper; 0 without attempts."""
    ranked = responses[np.argsort(-rewards)]
    terms = [y - boltzmann_average(prediction, ranked[i:]) for i, y in enumerate(ranked)]
    return np.sum(terms, axis=0) if terms else np.zeros_like(prediction)


def closed_form(problem, attempts=None, update=ranking_update):
    """The prediction at the fresh query when the first attempts of all are known, without autodiff.

    The policy W never appears but at the start: only inner products of the queries do.
    """
    num_queries, num_responses, _ = problem.responses.shape
    attempts = num_queries * num_responses if attempts is None else attempts
    known = np.clip(attempts - num_responses * np.arange(num_queries), 0, num_responses)
    points = np.stack([*problem.queries, problem.fresh])
    gram = points @ points[:-1].T
    predictions = points @ problem.policy.T
    for _ in range(problem.num_steps):
        updates = [
            update(prediction, responses[:n], rewards[:n])
            for prediction, responses, rewards, n in zip(
                predictions[:-1], problem.responses, problem.rewards, known, strict=True
            )
        ]
        predictions = predictions + 2 * problem.learning_rate * gram @ np.stack(updates)
    return predictions[-1]


@functools.partial(jax.jit, static_argnums=0)
def gradient(loss, policy, queries, responses, rewards, known):
    """Of the project's loss, summed over the queries, in the policy; known: which attempts count."""

    def total(policy):
        distances = jnp.sum(((queries @ policy.T)[:, None] - responses) ** 2, axis=-1)
        return jnp.sum(loss(-distances, rewards, known))

    return jax.grad(total)(policy)


def by_autodiff(problem, attempts, loss=plackett_luce):
    """The prediction at the fresh query by gradient descent in W, when some attempts are known."""
    with jax.enable_x64(True):
        known = (np.arange(problem.rewards.size) < attempts).reshape(problem.rewards.shape)
        policy = problem.policy
        for _ in range(problem.num_steps):
            step = gradient(loss, policy, *problem[1:4], known)
            policy = policy - problem.learning_rate * np.asarray(step)
    return policy @ problem.fresh


def every_row(reference, problem, *more):
    """The reference after 0, 1, ... attempts."""
    return np.stack([reference(problem, n, *more) for n in range(problem.rewards.size + 1)])


# ---------------------------------------------------------------------------------- the predictions


@functools.cache
def forward(model, dim, num_responses):
    """(params, contexts and queries, stacked) -> predictions: one program for all its networks."""
    task = TaskConfig(dim=dim, num_responses=num_responses)
    config = Options(task=task, model=ModelConfig(*model))
    return jax.jit(jax.vmap(lambda params, inputs: run(Network(config, params), *inputs)))


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def predict(problems, dtype="float64", build=network_for):
    """Rows 0..N that the network of each problem predicts."""
    with jax.enable_x64(dtype == "float64"):
        networks = [build(problem, dtype) for problem in problems]
        task, model = networks[0].config.task, networks[0].config.model
        program = forward(dataclasses.astuple(model), task.dim, task.num_responses)
        inputs = stack([as_context(problem, dtype) for problem in problems])
        return np.asarray(program(stack([n.params for n in networks]), inputs), np.float64)


def answers(problems, dtype="float64", build=network_for):
    """The last row for each problem."""
    return predict(problems, dtype, build)[:, -1]


def some_problems(shape, seed=0):
    rng = np.random.default_rng(seed)
    return [random_problem(rng, *shape) for _ in range(TOGETHER)]


def starts(problems):
    """The predictions before the first step, W x."""
    return np.stack([problem.policy @ problem.fresh for problem in problems])


def distance(one, other):
    """Largest distance of two lists of vectors, over the length of the second's."""
    lengths = np.linalg.norm(other, axis=-1)
    return np.max(np.linalg.norm(np.asarray(one) - other, axis=-1) / lengths)


# ------------------------------------------------------------------------------ the gradient's step


def scaled(problem, norm, policy_scale):
    """Queries longer by `norm`, at a step size that is as stable, and another starting policy."""
    return problem._replace(
        queries=norm * problem.queries,
        fresh=norm * problem.fresh,
        learning_rate=problem.learning_rate / norm**2,
        policy=policy_scale * problem.policy,
    )


# Every shape compiles anew: a failure is not worth the minutes that shrinking it takes.
few_shapes = functools.partial(settings, phases=(Phase.generate,))


@st.composite
def problem_lists(draw, num_responses, most_blocks, num_queries=None):
    """Problems of one shape, with any query norm, step size and starting policy."""
    n = draw(num_responses)
    blocks_a_step = n - 1 if num_queries is None else n
    k = draw(st.integers(1, min(10, most_blocks // blocks_a_step)))
    q = None if num_queries is None else draw(num_queries)
    d, seed = draw(st.integers(1, 16)), draw(st.integers(0, 2**31))
    norm, policy_scale = draw(st.floats(0.25, 4)), draw(st.floats(0.25, 4))
    return [scaled(problem, norm, policy_scale) for problem in some_problems((d, n, k, q), seed)]


def assert_all_rows_are_exact(problems, loss=plackett_luce):
    """In float64 next to the update itself, which may be a thousandth of the prediction."""
    by_hand = np.stack([every_row(closed_form, problem) for problem in problems])
    by_grad = np.stack([every_row(by_autodiff, problem, loss) for problem in problems])
    start = by_hand[:, :1]
    double, single = (predict(problems, dtype) for dtype in ("float64", "float32"))
    np.testing.assert_allclose(double[:, 0], start[:, 0], rtol=1e-12)
    for truth in (by_hand, by_grad):
        size = np.linalg.norm(truth, axis=-1)
        update = np.linalg.norm(truth - start, axis=-1)
        error = np.linalg.norm(double - truth, axis=-1)
        assert np.all(error <= 1e-9 * size) and np.all(error <= 1e-9 * update + 1e-12 * size)
        assert np.all(np.linalg.norm(single - truth, axis=-1) <= 1e-4 * size)


@few_shapes(max_examples=5)
@given(problem_lists(st.just(2), most_blocks=10))
def test_the_bradley_terry_network_descends_the_bradley_terry_loss_after_any_number_of_attempts(
    problems,
):
    assert_all_rows_are_exact(problems, bradley_terry)


@few_shapes(max_examples=5)
@given(problem_lists(st.integers(3, 20), most_blocks=20))
def test_the_plackett_luce_network_descends_the_loss_of_the_first_attempts_in_every_row(problems):
    assert_all_rows_are_exact(problems)


@few_shapes(max_examples=4)
@given(problem_lists(st.integers(2, 6), most_blocks=12, num_queries=st.integers(1, 4)))
def test_the_several_queries_network_descends_the_summed_losses_of_the_first_attempts_in_every_row(
    problems,
):
    assert_all_rows_are_exact(problems)


@pytest.mark.parametrize(
    "shape, dtype, tolerance",
    [
        ((16, 20, 1, None), "float64", 1e-9),
        ((16, 20, 1, None), "float32", 1e-4),
        ((2, 5, 10, None), "float32", 1e-4),
        ((3, 4, 5, 3), "float64", 1e-9),
    ],
)
def test_large_and_deep_networks_are_as_exact_as_small_ones(shape, dtype, tolerance):
    assert relative_errors(some_problems(shape), dtype).max() <= tolerance


def test_the_error_measured_against_a_slightly_other_step_size_is_that_of_the_step_size():
    # The yardstick itself: a network that descends 1% too fast is off by 1% of the update.
    problems = some_problems((3, 4, 1, None))
    errors = relative_errors(
        problems,
        "float64",
        lambda p, dtype: network_for(p._replace(learning_rate=1.01 * p.learning_rate), dtype),
    )
    truth = np.stack([closed_form(problem) for problem in problems])
    update = np.linalg.norm(truth - starts(problems), axis=-1)
    np.testing.assert_allclose(errors, 0.01 * update / np.linalg.norm(truth, axis=-1), rtol=1e-6)


# ------------------------------------------------------------------------------------- invariances


def update_distance(one, other, problems):
    """Largest distance of two lists of answers, in units of the second's updates."""
    return distance(one - starts(problems), other - starts(problems))


@all_networks
def test_the_order_of_the_attempts_changes_nothing(shape):
    problems, places = some_problems(shape), np.arange(shape[1])
    for order in (np.roll(places, 1), places[::-1]):
        permuted = [
            p._replace(responses=p.responses[:, order], rewards=p.rewards[:, order])
            for p in problems
        ]
        assert update_distance(answers(permuted), answers(problems), problems) <= 1e-9


@all_networks
def test_only_the_order_of_the_rewards_counts(shape):
    spread = np.linspace(0.2, 1, shape[1])  # gaps that stay large when cubed
    problems = [p._replace(rewards=spread[np.argsort(p.rewards)]) for p in some_problems(shape)]
    cubed = [p._replace(rewards=p.rewards**3) for p in problems]
    reversed_order = [p._replace(rewards=1.2 - p.rewards) for p in problems]
    plain = answers(problems)
    assert update_distance(answers(cubed), plain, problems) <= 1e-9
    assert update_distance(answers(reversed_order), plain, problems) > 0.1


def test_the_order_of_the_queries_changes_nothing():
    problems = some_problems(SHAPES["several_queries"])
    order = np.array([1, 2, 0])
    moved = [
        p._replace(queries=p.queries[order], responses=p.responses[order], rewards=p.rewards[order])
        for p in problems
    ]
    assert update_distance(answers(moved), answers(problems), problems) <= 1e-9


def test_attempts_at_another_query_are_not_ranked_among_one_s_own():
    # All at the second query beat all at the first, then the other way round.
    problems = some_problems(SHAPES["several_queries"])
    low, high = 0.4 * np.ones((3, 1)), 0.4 * np.ones((3, 1))
    low[1], high[1] = 0.5, 0.0
    one, other = ([p._replace(rewards=0.5 * p.rewards + r) for p in problems] for r in (low, high))
    assert update_distance(answers(one), answers(other), problems) <= 1e-9


def test_a_query_orthogonal_to_all_others_contributes_nothing():
    rng = np.random.default_rng(2)
    problems, others = [], []
    for problem in some_problems(SHAPES["several_queries"]):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        queries, fresh = problem.queries.copy(), problem.fresh.copy()
        queries[0, 2] = queries[2, 2] = fresh[2] = 0
        queries[1, :2] = 0
        problem = problem._replace(queries=queries @ rotation, fresh=fresh @ rotation)
        responses = problem.responses.copy()
        responses[1] = rng.normal(size=responses[1].shape)
        problems.append(problem)
        others.append(problem._replace(responses=responses))
    assert update_distance(answers(others), answers(problems), problems) <= 1e-9
    # At a query that is not orthogonal the same responses count.
    one, other = ([p._replace(queries=p.queries + 0.3) for p in ps] for ps in (problems, others))
    assert update_distance(answers(one), answers(other), one) > 1e-3


@pytest.mark.parametrize("num_responses", [2, 4])
def test_with_the_fresh_query_alone_any_norm_gives_what_the_network_of_that_norm_gives(
    num_responses,
):
    problems = [
        scaled(problem, norm, 1.0)
        for norm, problem in zip(
            [0.8, 1.7, 2.5, 4.0], some_problems((3, num_responses, 2, None)), strict=True
        )
    ]

    def of_any_norm(problem, dtype):
        return several_queries_network(
            problem.policy, problem.learning_rate, 1, num_responses, 2,
            largest_query_norm=4.0, dtype=dtype,
        )  # fmt: skip

    assert (
        update_distance(answers(problems, build=of_any_norm), answers(problems), problems) <= 1e-8
    )


# ------------------------------------------------------------------------------------------ limits


def with_gaps(problems, gap):
    """Rewards `gap` apart, in their own order."""
    return [
        p._replace(rewards=0.5 + gap * np.argsort(np.argsort(p.rewards)).astype(float))
        for p in problems
    ]


@all_networks
@pytest.mark.parametrize("smallest_gap", [SHARP.smallest_gap, 1e-3])
def test_rewards_must_differ_by_the_smallest_gap(shape, smallest_gap):
    sharpness = SHARP._replace(smallest_gap=smallest_gap)
    build = functools.partial(network_for, sharpness=sharpness)
    problems = some_problems(shape)
    fine, close = (with_gaps(problems, factor * smallest_gap) for factor in (2, 0.01))
    truth = np.stack([closed_form(problem) for problem in fine])  # only the order counts
    assert update_distance(answers(fine, build=build), truth, problems) <= 1e-9
    assert distance(answers(fine, "float32", build), truth) <= 1e-4
    errors = answers(close, build=build) - truth
    update = np.linalg.norm(truth - starts(problems), axis=-1)
    assert np.all(np.linalg.norm(errors, axis=-1) > 1e-3 * update)


def tied_update(prediction, responses, rewards):
    """What the network makes of ties: a group of equal rewards is picked at once, as its mean.

    Every block ranks one group. Where blocks are left over, they do the first group once more.
    """
    groups = [rewards == level for level in np.unique(rewards)[::-1]]
    remaining = [np.logical_or.reduce(groups[i:]) for i in range(len(groups))]
    terms = [
        responses[group].mean(axis=0) - boltzmann_average(prediction, responses[rest])
        for group, rest in zip(groups, remaining, strict=True)
    ]
    top = responses[groups[0]]
    spare = max(len(rewards) - 1 - len(groups), 0)
    return sum(terms) + spare * (top.mean(axis=0) - boltzmann_average(prediction, top))


@single_query_networks
def test_tied_attempts_are_picked_as_their_mean(num_responses):
    rng = np.random.default_rng(3)
    problems = [
        p._replace(rewards=rng.integers(0, 4, (1, num_responses)) / 4)
        for seed in range(10)
        for p in some_problems((3, num_responses, 2, None), seed)
    ]
    truth = np.stack([closed_form(p, update=tied_update) for p in problems])
    assert distance(answers(problems), truth) <= 1e-9


@single_query_networks
def test_a_tie_moves_the_network_though_it_is_no_preference_to_the_loss(num_responses):
    problems = [
        p._replace(rewards=np.full_like(p.rewards, 0.5))
        for p in some_problems((3, num_responses, 1, None))
    ]
    by_loss = np.stack([by_autodiff(problem, num_responses) for problem in problems])
    np.testing.assert_allclose(by_loss, starts(problems), rtol=1e-12)
    moved = np.linalg.norm(answers(problems) - by_loss, axis=-1)
    rates = np.array([2 * problem.learning_rate for problem in problems])
    assert np.all(moved > 0.01 * rates)


@single_query_networks
def test_a_query_of_another_norm_moves_by_the_ratio_of_the_squared_norms(num_responses):
    problems = some_problems((3, num_responses, 1, None))
    norms = np.array([0.3, 0.9, 1.5, 3.0])
    scaled_up = [scaled(p, float(norm), 1.0) for p, norm in zip(problems, norms, strict=True)]

    def of_norm_one(problem, dtype):
        unit = problem.fresh / np.linalg.norm(problem.fresh)
        return network_for(problem._replace(fresh=unit, queries=unit[None]), dtype)

    truth = np.stack([closed_form(problem) for problem in scaled_up]) - starts(scaled_up)
    moved = answers(scaled_up, build=of_norm_one) - starts(scaled_up)
    np.testing.assert_allclose(norms[:, None] ** 2 * moved, truth, rtol=1e-9, atol=1e-14)


def test_responses_may_lie_as_far_as_the_range_of_the_scores_and_no_farther():
    problems = [
        p._replace(responses=30 * p.responses) for p in some_problems(SHAPES["plackett_luce"])
    ]
    truth = np.stack([closed_form(problem) for problem in problems])
    for score_range, exact in ((1e5, True), (10.0, False)):
        build = functools.partial(network_for, sharpness=SHARP._replace(score_range=score_range))
        error = update_distance(answers(problems, build=build), truth, problems)
        assert error <= 1e-9 if exact else error > 1e-2


# ------------------------------------------------------------------------------------------- sizes


def build_all(dim, num_responses, num_steps, num_queries, dtype=jnp.float32):
    """The networks of the three families, by their names in `SHAPES`."""
    policy = np.random.default_rng(0).normal(size=(dim, dim))
    more = dict(num_steps=num_steps, dtype=dtype)
    return {
        "bradley_terry": bradley_terry_network(policy, 0.1, **more),
        "plackett_luce": plackett_luce_network(policy, 0.1, num_responses, **more),
        "several_queries": several_queries_network(policy, 0.1, num_queries, num_responses, **more),
    }


def sizes(network):
    """(blocks, heads, MLP width, width), by the shapes of the parameters."""
    blocks = list(network.params["trunk"]["blocks"].values())
    width = network.params["embed"]["kernel"].shape[1]
    hidden = {block["mlp"]["up"]["kernel"].shape for block in blocks if "mlp" in block}
    assert {block["attention"]["out"]["kernel"].shape for block in blocks} == {(width, width)}
    assert len({"mlp" in block for block in blocks}) == 1 and len(hidden) <= 1
    mlp_width = hidden.pop()[1] if hidden else None
    return len(blocks), network.config.model.num_heads, mlp_width, width


@pytest.mark.parametrize("d, n, k, q", [(1, 2, 1, 1), (2, 3, 1, 3), (3, 4, 2, 2), (4, 3, 3, 5)])
def test_the_sizes_are_those_of_the_table(d, n, k, q):
    networks = {name: sizes(network) for name, network in build_all(d, n, k, q).items()}
    even = 3 * d + 3 + (3 * d + 3) % 2
    assert networks == {
        "bradley_terry": (k, 2, None, 2 * d + 2),
        "plackett_luce": (k * (n - 1), 2, 1 if k == 1 else 2 * d + 1, even),
        "several_queries": (k * n + 1, 6, 2 * d + 1, 6 * (d + q + 1)),
    }


# -------------------------------------------------------------------------- the network in training


@pytest.mark.parametrize("name", SHAPES)
def test_training_could_start_from_the_network(name):
    d, n, k, q = SHAPES[name]
    network = build_all(d, n, k, q or 1)[name]
    params, config = network.params, network.config
    of_training = jax.eval_shape(lambda: init_state(config).params)
    assert jax.tree.structure(params) == jax.tree.structure(of_training)
    for leaf, trained in zip(jax.tree.leaves(params), jax.tree.leaves(of_training), strict=True):
        assert (config.num_seeds, *leaf.shape) == trained.shape
        assert leaf.dtype == trained.dtype == jnp.float32
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("name", SHAPES)
def test_training_s_learner_predicts_as_the_network_does(name):
    d, n, k, q = SHAPES[name]
    network = build_all(d, n, k, q or 1)[name]
    context, _ = as_context(some_problems((d, n * (q or 1), 1, None))[0], "float32")
    learner = jax.jit(lambda params, context: network_of(network.config)(params)(context))
    by_training = learner(network.params, context)
    by_run = jax.jit(lambda params: run(Network(network.config, params), context))(network.params)
    np.testing.assert_allclose(by_training, by_run, rtol=1e-6, atol=1e-6)
    assert np.abs(by_run[-1] - by_run[0]).max() > 1e-3  # both moved


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda w: bradley_terry_network(w, 0.1, 0), "num_steps=0"),
        (lambda w: plackett_luce_network(w, 0.1, 4, 0), "num_steps=0"),
        (lambda w: plackett_luce_network(w, 0.1, 1), "num_responses=1"),
        (lambda w: several_queries_network(w, 0.1, 0, 4), "num_queries=0"),
    ],
)
def test_a_size_that_no_network_has_is_named(build, named):
    with pytest.raises(ValueError, match=named):
        build(np.eye(2))
