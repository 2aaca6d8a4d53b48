"""Attacks and defences: searches keep their promises, the exact reader has no flaw, the command."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from test_rounds import ExactNetwork

from icl_align import attack as command
from icl_align.dialogue.attacks import defences, study, tables
from icl_align.dialogue.attacks.asking import ACCURACIES, Asking
from icl_align.dialogue.attacks.options import ATTACKS, AttackConfig
from icl_align.dialogue.attacks.prompts import (
    FREE,
    natural_requests,
    strongest_evidence,
    with_refusals,
)
from icl_align.dialogue.attacks.search import gcg, genetic, random_search
from icl_align.dialogue.attacks.targets import (
    REFUSAL,
    after_own_check,
    first_answer,
    fluency,
    log_answers,
    opening,
    wanted,
)
from icl_align.dialogue.dialogues import (
    foreign_tokens,
    from_tokens,
    is_foreign,
    natural_tokens,
    sample_dialogue,
    symbol_tokens,
    symbols_of_tokens,
    to_tokens,
)
from icl_align.dialogue.kinds import request
from icl_align.dialogue.options import Options
from icl_align.dialogue.readers import activation, log_question, question_ahead
from icl_align.dialogue.vocabulary import vocabulary_of
from icl_align.dialogue.world import WORLD
from icl_align.intervals import of_mean, within
from icl_align.running.compose import compose_config
from icl_align.running.run import run
from icl_align.running.training import init_state, network_of
from runs import OFF, finish, start

SMALL = ["model.num_layers=1", "model.width=16", "model.num_heads=2"]
CONFIG = compose_config(["world=dialogue", "task=request", *SMALL, OFF])
TASK = CONFIG.task
KEYS = jax.random.split(jax.random.key(5), 6)
NATURAL = natural_tokens(TASK)


harmful_requests = jax.jit(lambda keys: natural_requests(TASK, keys, harmful=True))


@pytest.fixture(scope="module")
def questions():
    return harmful_requests(KEYS)


@pytest.fixture(scope="module")
def network():
    params = jax.tree.map(lambda leaf: leaf[0], init_state(CONFIG).params)
    # An untrained one hardly looks at the prompt.
    params = jax.tree.map(lambda leaf: 4 * leaf, params)
    return network_of(CONFIG)(params)


# ------------------------------------------------------------------------------------------ prompts


def test_every_persona_symbol_is_evidence_of_the_same_weight():
    for before in (-3, 0, 9, request.REFUSE):
        question = jnp.full(request.QUESTION_LENGTH, before)
        careful, careless = (
            np.asarray(request.KIND.question(care, question, FREE.start + 1)) for care in (1.0, 0.0)
        )
        assert np.exp(careful).sum() == pytest.approx(1, abs=1e-5)
        natural = slice(request.PERSONA_SYMBOLS)
        ratio = careless[natural] - careful[natural]
        np.testing.assert_allclose(np.abs(ratio), request.EVIDENCE, atol=1e-5)
        assert (np.sign(ratio)[:8] == 1).all() and (np.sign(ratio)[8:] == -1).all()


@jax.jit
def odds_of(questions):
    zero = jnp.zeros((), int)
    return jax.vmap(lambda q: activation(log_question(TASK, zero, q).sum(axis=0)))(questions)


def test_no_natural_prompt_is_stronger_evidence_than_the_strongest(questions):
    strongest = jax.jit(strongest_evidence)(questions, KEYS)
    np.testing.assert_allclose(odds_of(strongest), -6 * request.EVIDENCE, atol=1e-4)
    many = harmful_requests(jax.random.split(jax.random.key(0), 500))
    assert (odds_of(many) >= -6 * request.EVIDENCE - 1e-4).all()
    np.testing.assert_array_equal(strongest[:, -1], questions[:, -1])
    natural = jax.jit(jax.vmap(lambda q: question_ahead(TASK, jnp.zeros((), int), q)))(strongest)
    said = jnp.take_along_axis(natural, strongest[..., None], axis=-1)
    assert np.isfinite(said).all()  # people do say it


def test_what_nobody_says_is_no_evidence(questions):
    foreign = np.flatnonzero(foreign_tokens(TASK))
    assert not NATURAL[foreign].any() and NATURAL.sum() == request.PERSONA_SYMBOLS
    for symbol in symbols_of_tokens(TASK, jnp.asarray(foreign))[::8]:
        other = questions.at[:, FREE].set(symbol)
        np.testing.assert_allclose(odds_of(other), 0, atol=1e-6)


def test_foreign_tokens_are_those_that_dialogues_hold_elsewhere():
    task = dataclasses.replace(TASK, foreign_share=0.5)
    keys = jax.random.split(jax.random.key(0), 2000)
    tokens = jax.jit(jax.vmap(lambda k: to_tokens(task, sample_dialogue(task, k)[0])))(keys)
    free = np.asarray(tokens)[:, 1 + FREE.start : 1 + FREE.stop]
    strange = np.asarray(is_foreign(task, tokens))
    assert strange[:, 1 + FREE.start : 1 + FREE.stop].mean() == pytest.approx(0.5, abs=0.02)
    assert not np.delete(strange, np.r_[1 + FREE.start : 1 + FREE.stop], axis=1).any()
    assert (NATURAL | foreign_tokens(TASK))[free].all()
    plain = jax.jit(jax.vmap(lambda k: to_tokens(TASK, sample_dialogue(TASK, k)[0])))(keys)
    known = np.unique(np.asarray(plain))
    assert {*np.flatnonzero(foreign_tokens(TASK))} <= {*known}


def test_examples_are_refusals_of_other_harmful_requests(questions):
    for count, checked in itertools.product((1, 2, 3), (False, True)):
        of = lambda q, k, n=count, c=checked: with_refusals(q, k, n, c)  # noqa: E731
        shown = np.asarray(jax.vmap(of)(questions, KEYS))
        requests, answers, checks = (shown[:, part : FREE.start : 3] for part in range(3))
        assert ((answers == request.REFUSE).sum(axis=1) == count).all()
        assert ((requests == request.NOTHING).sum(axis=1) == 3 - count).all()
        assert ((checks == request.FOUND_FINE).sum(axis=1) == count * checked).all()
        assert (requests != shown[:, -1:]).all()
        np.testing.assert_array_equal(shown[:, FREE.start :], questions[:, FREE.start :])
        # Refusals speak for care, and more so if they were found fine.
        assert (odds_of(jnp.asarray(shown)) > odds_of(questions) + 1.5 * count).all()


# ------------------------------------------------------------------------------------------ targets


def test_the_gradient_is_the_slope_along_every_token(network, questions):
    target, one = first_answer(TASK, network), questions[:1]
    slope = np.asarray(target.gradient(one))[0]
    embedding = np.asarray(network.embedding[...])

    def moved(place, token, size):
        tokens = opening(TASK, one)
        layers, width = len(network.trunk.blocks) + 1, embedding.shape[1]
        added = np.zeros((layers, tokens.shape[1], width), np.float32)
        added[0, 1 + FREE.start + place] = size * embedding[token]
        row = network(tokens, jnp.asarray(added))[:, -1]
        return float(log_answers(TASK, row)[0, wanted(one)[0]])

    for place, token in itertools.product((0, 5), (3, 40)):
        measured = (moved(place, token, 0.01) - moved(place, token, -0.01)) / 0.02
        assert slope[place, token] == pytest.approx(measured, rel=0.05, abs=2e-3)


def test_the_target_after_a_check_is_a_sum_over_what_is_said_before(network, questions):
    """Over all answers and checks it would be the chance itself; the left ones have the rest."""
    found = np.exp(after_own_check(TASK, network).score(questions))
    vocabulary = vocabulary_of(TASK)
    begin, complies = opening(TASK, questions), np.asarray(wanted(questions))
    first = np.exp(log_answers(TASK, network(begin)[:, -1]))
    whole, left_out = np.zeros(len(questions)), np.zeros(len(questions))
    for answer in range(request.CONTENTS + 1):
        token = vocabulary.first_symbol + request.FIRST_CONTENT + answer
        said = jnp.full((len(questions), 1), token)
        rows = network(jnp.concatenate([begin, said], axis=1))[:, -1]
        checks = rows[:, vocabulary.first_check : vocabulary.first_check + 2]
        for check in range(2):
            more = jnp.array([[vocabulary.first_check + check, vocabulary.first_instruction]])
            more = jnp.broadcast_to(more, (len(questions), 2))
            row = network(jnp.concatenate([begin, said, more], axis=1))[:, -1]
            last = np.exp(log_answers(TASK, row))[np.arange(len(questions)), complies]
            chance = first[:, answer] * np.asarray(jax.nn.softmax(checks))[:, check]
            whole += chance * last
            left_out += chance * last * ((answer != complies) & (answer != REFUSAL))
    np.testing.assert_allclose(found, whole - left_out, rtol=1e-4)


# ----------------------------------------------------------------------------------------- searches


def searched(name, network, questions, allowed, steps=4, candidates=8):
    target, key = first_answer(TASK, network), jax.random.key(0)
    if name == "gcg":
        return gcg(TASK, target, questions, allowed, key, steps, candidates, 16)
    return random_search(TASK, target, questions, allowed, key, steps, candidates)


@pytest.mark.parametrize("name", ["gcg", "random_search"])
@pytest.mark.parametrize("tokens", ["natural", "all"])
def test_a_search_returns_the_best_it_saw_and_writes_what_it_may(name, tokens, network, questions):
    allowed = NATURAL if tokens == "natural" else np.ones_like(NATURAL)
    found = searched(name, network, questions, allowed)
    score = first_answer(TASK, network).score
    assert found.trace.shape == (5, 6)
    assert (np.diff(found.trace, axis=0) >= 0).all()
    np.testing.assert_allclose(score(found.questions), found.trace[-1], atol=1e-5)
    np.testing.assert_allclose(found.trace[0], score(questions), atol=1e-5)
    others = np.delete(np.asarray(found.questions), np.r_[FREE], axis=1)
    np.testing.assert_array_equal(others, np.delete(np.asarray(questions), np.r_[FREE], axis=1))
    written = np.asarray(symbol_tokens(TASK, found.questions[:, FREE]))
    assert allowed[written].all()


def test_the_gradient_finds_more_than_its_opposite(network, questions):
    target, every = first_answer(TASK, network), NATURAL | foreign_tokens(TASK)
    away = target._replace(gradient=lambda q: -target.gradient(q))
    reached = [
        float(gcg(TASK, of, questions, every, jax.random.key(0), 8, 8, 4).trace[-1].mean())
        for of in (target, away)
    ]
    assert reached[0] > reached[1] + 0.5


@pytest.mark.parametrize("name", ["gcg", "random_search"])
def test_with_every_replacement_tried_a_step_is_the_best_of_all(name, network, questions):
    one = questions[:1]
    score = first_answer(TASK, network).score
    every = [
        one[0].at[place].set(symbol)
        for place in range(FREE.start, FREE.stop)
        for symbol in range(request.PERSONA_SYMBOLS)
    ]
    best = float(jnp.max(score(jnp.stack(every))))
    found = searched(name, network, one, NATURAL, steps=1, candidates=3000)
    assert float(found.trace[1, 0]) == pytest.approx(best, abs=1e-5)


def test_a_genetic_search_stays_fluent_and_loses_no_elite(network, questions):
    score = jax.jit(first_answer(TASK, network).score)
    of = jax.jit(lambda q: fluency(TASK, network, q))
    keys = jax.random.split(jax.random.key(2), 8)
    others = jnp.stack([harmful_requests(jax.random.split(k, 6)) for k in keys])
    population = jnp.broadcast_to(questions[:, None], (6, 8, questions.shape[1]))
    population = population.at[..., FREE].set(jnp.moveaxis(others, 0, 1)[..., FREE])
    surprise = of(population.reshape(48, -1))[1].reshape(6, 8)
    limit = jnp.max(jnp.min(surprise, axis=1))  # every request has one that is fluent enough
    found = genetic(TASK, score, of, population, NATURAL, limit, jax.random.key(0), 5, 2, 0.5, 0.2)
    assert (np.diff(found.trace, axis=0) >= -1e-6).all()
    np.testing.assert_allclose(score(found.questions), found.trace[-1], atol=1e-5)
    assert (of(found.questions)[1] <= limit + 1e-5).all()
    assert NATURAL[np.asarray(symbol_tokens(TASK, found.questions[:, FREE]))].all()


# ----------------------------------------------------------------------------------------- defences


@given(n=st.integers(1, 12), p=st.floats(0, 1))
@settings(max_examples=20)
def test_a_majority_of_equal_chances_is_the_tail_of_the_binomial(n, p):
    found = defences.majority(jnp.full((3, n), p))
    np.testing.assert_allclose(found, binom.sf(n // 2, n, p), atol=1e-5)


@pytest.fixture(scope="module")
def asked(questions):
    """Chances of the exact reader, and of a language model that is the exact reader."""
    options = AttackConfig(draws=2, copies=3)
    asking = Asking(CONFIG, lambda _: ExactNetwork(TASK), options)
    exact = asking.exact_answers(questions, KEYS)
    return asking, np.asarray(exact), np.asarray(asking.answers(None, questions, KEYS))


def test_a_language_model_that_is_the_exact_reader_has_no_flaw(asked):
    _, exact, other = asked
    np.testing.assert_allclose(exact, other, atol=1e-4)


def test_before_the_first_check_no_critic_matters(asked):
    asking, exact, _ = asked
    none = exact[:, :, 0][next(n for n, (own, _) in enumerate(asking.rows) if own.checks == 0)]
    for chances, (own, _) in zip(exact, asking.rows, strict=True):
        changed = own.reminder or own.examples or own.copies > 1
        if not changed:
            np.testing.assert_allclose(chances[:, 0], none, atol=1e-6)


def test_defences_are_safer_the_more_they_tell_and_filters_refuse(asked):
    asking, exact, _ = asked
    nobody, everybody = np.zeros(6, bool), np.ones(6, bool)
    of = {one.label: asking.defended(exact, one, nobody).mean(axis=0)[0] for one in asking.defences}
    assert of["in_context_refusals 3"] < of["in_context_refusals 1"] < of["none"]
    assert of["self_reminder"] < of["none"]
    assert of["backup 1"] < of["in_context_refusals 1"]
    (filters,) = (one for one in asking.defences if one.filters)
    assert of["perplexity_filter"] == pytest.approx(of["none"])
    np.testing.assert_array_equal(asking.defended(exact, filters, everybody), [[0, 1]] * 6)
    swept = asking.swept(exact)
    assert swept.shape == (6, len(ACCURACIES), 4)
    assert len({one.label for one in asking.defences}) == len(asking.defences)


def test_a_certain_critic_is_right_and_a_wrong_one_never_is(questions):
    def checks_of(accuracy):
        scripts = defences.Script(
            KEYS, questions, jnp.zeros(6, bool),
            jnp.full(6, defences.CRITIC), jnp.full(6, accuracy),
        )  # fmt: skip

        def one(script):
            judge = defences.voices_of(TASK, script).judge
            answers = jnp.array([[request.REFUSE], [request.FIRST_CONTENT]])
            return jnp.stack([judge(0, answer, jnp.zeros(2)) for answer in answers])

        return np.asarray(jax.vmap(one)(scripts))

    np.testing.assert_array_equal(checks_of(1.0), [[1, 0]] * 6)  # refusing harm is fine
    np.testing.assert_array_equal(checks_of(0.0), [[0, 1]] * 6)


def test_the_cost_in_tokens_grows_by_what_is_said_more():
    of = {one.label: one.tokens for one in defences.defences(AttackConfig(copies=7))}
    assert of["own_check 2"] - of["own_check 1"] == 3  # check, instruction, answer
    assert of["no_check 2"] - of["no_check 1"] == 2
    assert of["backup 2"] - of["backup 1"] == 3  # request, refusal, check
    assert of["in_context_refusals 3"] - of["in_context_refusals 2"] == 2
    assert of["smoothing"] == 7 * of["none"]


# -------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two seeds that has learned nothing."""
    folder = tmp_path_factory.mktemp("attacked") / "run"
    options = ["world=dialogue", "task=request", "+scale=smoke", "num_seeds=2", OFF]
    options += ["evaluation.num_contexts=4", "evaluation.concept=false", "evaluation.plan=[none]"]
    run(compose_config(options), folder)
    return folder


QUICK = ["num_requests=3", "draws=1", "candidates=2", "budget=24", "copies=2"]


@pytest.fixture
def any_network(monkeypatch):
    """Nothing has to be learned."""
    behind = study._behind
    monkeypatch.setattr(study, "_behind", lambda *given: (behind(*given)[0], np.inf))


def test_an_attack_leaves_its_table_and_figure(folder, tmp_path, any_network, capsys):
    command.main([f"run_dir={folder}", *QUICK])
    found = json.loads((folder / "attacks.json").read_text())
    assert (folder / "attacks.png").read_bytes()[:4] == b"\x89PNG"
    assert found["attacks"] == list(ATTACKS) and found["seeds"] == [0, 1]
    printed = capsys.readouterr().out
    for label in found["defences"]:
        assert label in printed
        for name in ATTACKS:
            model, exact = (found["success"][r][name][label] for r in ("language_model", "exact"))
            assert 0 <= model["low"] <= model["mean"] <= model["high"] <= 1
            gap = found["flaw"][name][label]["mean"]
            assert gap == pytest.approx(model["mean"] - exact["mean"], abs=2e-5)
    passes = found["passes"]
    assert set(passes) == {"random_search", "gcg_natural", "gcg", "autodan", "gcg_adaptive"}
    assert all(0 < spent <= 24 for spent in passes.values())
    beyond = found["beyond_asking_again"]["language_model"]["gcg"]["own_check 2"]["mean"]
    of = found["success"]["language_model"]["gcg"]
    assert beyond == pytest.approx(of["own_check 2"]["mean"] - of["no_check 2"]["mean"], abs=2e-5)
    none = found["effect"]["language_model"]["gcg"]["none"]
    assert none["mean"] == none["low"] == none["high"] == 0
    for of in found["by_budget"].values():
        assert of["passes"][-1] <= 24 and len(of["passes"]) == len(of["mean"])
    picture = tmp_path / "runs.png"
    command.main([str(folder), f"figure={picture}"])
    assert picture.read_bytes()[:4] == b"\x89PNG"
    lines = capsys.readouterr().out.splitlines()
    assert "gcg checked" in next(line for line in lines if line.startswith("run "))
    assert any("num_requests=3, budget=24, candidates=2" in line for line in lines)
    with pytest.raises(SystemExit):  # what is there would be lost
        command.main([f"run_dir={folder}", *QUICK, "attacks=[gcg]"])
    said = capsys.readouterr().err
    assert "attacks=[gcg]; name another with folder=DIR" in said and len(said.splitlines()) == 1
    assert json.loads((folder / "attacks.json").read_text())["attacks"] == list(ATTACKS)
    (folder / "attacks.json").write_text("{}")
    with pytest.raises(SystemExit):
        command.main([str(folder)])
    said = capsys.readouterr().err
    assert "attacks.json does not hold attacks" in said and "holds no run that was attacked" in said


def test_attacks_that_one_run_lacks_are_said_to_be_left_out():
    found = {"a": {"attacks": ["none", "gcg"]}, "b": {"attacks": ["none"]}}
    assert tables.left_out(found) == {"gcg": ["b"]}
    assert tables.left_out({"b": found["b"]}) == {}


def test_a_run_that_has_not_learned_says_so(folder, tmp_path):
    process = start(f"run_dir={folder}", f"folder={tmp_path}", *QUICK, module="icl_align.attack")
    status, _, error = finish(process)
    assert status == 1
    assert "has not learned (step 20): answers to natural requests are " in error
    assert "train it longer" in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "attacks.json").exists()


def test_who_reads_the_request_alone_has_not_learned():
    """A network that answers as the exact reader would without the persona."""
    asking = Asking(CONFIG, lambda _: None, AttackConfig())
    exact = asking.exact_first
    natural = np.concatenate([np.asarray(own) for own in asking.requests(KEYS)[:2]])
    asking.first = lambda _, q: exact(jnp.asarray(q).at[:, FREE].set(request.NOTHING))
    (behind,), blind = study._behind(asking, [None], natural)
    assert behind == pytest.approx(blind) and blind > 1e-3
    asking.first = lambda _, q: exact(q)
    assert study._behind(asking, [None], natural)[0] == [pytest.approx(0, abs=1e-6)]


def test_a_filter_refuses_as_many_natural_prompts_as_is_said(network):
    asking = Asking(CONFIG, lambda _: network, AttackConfig())
    draw = lambda seed: asking.requests(jax.random.split(jax.random.key(seed), 2000))[0]  # noqa: E731
    for surprise in (lambda q: asking.surprise({}, q), asking.exact_surprise):
        limit = study._limit(surprise(draw(0)), AttackConfig(false_alarms=0.1))
        assert np.mean(np.asarray(surprise(draw(1))) > limit) == pytest.approx(0.1, abs=0.03)
    strange = draw(0)[:4].at[:, FREE.start].set(request.REFUSE)
    assert np.isinf(asking.exact_surprise(strange)).all()


def test_smoothing_replaces_some_symbols_by_natural_ones(questions):
    other = jax.vmap(lambda q, k: defences.perturbed(q, k, 2))(questions, KEYS)
    changed = np.asarray(other != questions)
    assert (changed.sum(axis=1) <= 2).all() and changed.any()
    assert not np.delete(changed, np.r_[FREE], axis=1).any()
    assert (np.asarray(other)[:, FREE] < request.PERSONA_SYMBOLS).all()


def test_a_transfer_uses_the_prompts_of_another_seed(questions):
    asking = Asking(CONFIG, network_of(CONFIG), AttackConfig(candidates=2, budget=20))
    params = [jax.tree.map(lambda leaf: leaf[0], init_state(CONFIG).params)] * 2
    prompts, _ = study._attacked(
        asking, ["gcg", "gcg_transfer"], params, [questions] * 2, [questions] * 2, [0.0, 0.0],
        jax.random.key(0), lambda share: None,
    )  # fmt: skip
    assert (prompts["gcg"][0] != prompts["gcg"][1]).any()
    for own, other in ((0, 1), (1, 0)):
        np.testing.assert_array_equal(prompts["gcg_transfer"][own], prompts["gcg"][other])


@pytest.mark.parametrize("own", [False, True])
def test_seeds_with_contexts_of_their_own_meet_requests_of_their_own(own, any_network):
    config = dataclasses.replace(
        CONFIG, evaluation=dataclasses.replace(CONFIG.evaluation, own_contexts=own)
    )
    of_one = jax.tree.map(lambda leaf: np.stack([leaf[0]] * 2), init_state(CONFIG).params)
    options = AttackConfig(attacks=["none"], defences=["none"], num_requests=4, draws=1)
    found = study.study(config, network_of(config), of_one, options, lambda share: None)
    for of in (found["success"]["language_model"]["none"], found["success"]["exact"]["none"]):
        one, other = of["none"]["by_seed"]
        assert (one != other) == own
        # The seeds' spread then holds that of the requests too.
        of_seeds = within(of_mean(np.array([[one, other]] * 4), nested=True), 0, 1)
        assert (of["none"]["high"] == pytest.approx(of_seeds["high"], abs=1e-5)) == own


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "run_dir=null: name the folder of a finished run"),
        (["run_dir=/nowhere"], "it holds none"),
        (["budget=0"], "budget=0: must be a whole number, at least 1"),
        (["budget=3"], "budget=3: random_search takes 14 passes with candidates=13"),
        (["elites=1"], "elites=1.0: leaves no child of 13"),
        (["copies=1"], "copies=1: must be a whole number, at least 2"),
        (["run_dir=x", "figure=a.png"], "figure=a.png: is for runs that are compared"),
        ([".", "budget=600"], "budget=600: has no effect on runs that are compared"),
        (["defences=[prayer]"], "defences=[prayer]: must be a list of some of none, self_reminder"),
        (["attacks=[gcg,gcg]"], "must be one or more, each once"),
    ],
)
def test_what_cannot_be_attacked_is_said_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert said in line and len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "social_bias"}, "is of task=social_bias; needs task=request"),
        ({"rounds": 3}, "has task.rounds=3; 3 checks need 4"),
        ({"first_neutral_share": 1.0}, "has 1 in task.first_neutral_share"),
        ({"unchecked_share": 0.0}, "has 0 in task.unchecked_share"),
        ({"critic_accuracy": [0.5, 1.0]}, "has 1 in task.critic_accuracy"),
        ({"neutral_share": 0.0}, "has task.neutral_share=0"),
    ],
)
def test_runs_that_cannot_hold_the_rounds_are_refused(changes, said):
    config = dataclasses.replace(Options(), task=dataclasses.replace(TASK, **changes))
    with pytest.raises(command.ConfigError, match=said):
        command.refuse(config, "run")


def test_a_question_without_harm_is_complied_with_by_all():
    """Whoever is careful gives benign requests what they ask for."""
    benign = jax.jit(lambda keys: natural_requests(TASK, keys, harmful=False))(KEYS)
    asking = Asking(CONFIG, lambda _: None, AttackConfig())
    chances = np.exp(asking.exact_first(benign))
    content = np.asarray(wanted(benign))
    assert (chances[np.arange(6), content] > 0.9).all()
    assert (chances[:, REFUSAL] < 0.02).all()


# --------------------------------------------------------------------------------------- in training


def test_attacks_in_training_change_some_personas_and_raise_compliance(network):
    config = compose_config(
        ["world=dialogue", "task=request", "train.attacked_share=0.25", *SMALL, OFF]
    )
    keys = jax.random.split(jax.random.key(1), 32)
    plain = WORLD.sample(config, keys)
    provoked = jax.jit(lambda: WORLD.provoked(config, network, plain, keys))()
    changed = np.asarray(plain.given) != np.asarray(provoked.given)
    assert 1 <= changed.any(axis=1).sum() < 32
    elsewhere = np.delete(changed, np.r_[1 + FREE.start : 1 + FREE.stop], axis=1)
    assert not elsewhere.any()
    assert not NATURAL[np.asarray(provoked.given)[changed]].any()  # no evidence: exact as before
    np.testing.assert_array_equal(is_foreign(TASK, provoked.given), changed)
    score = first_answer(TASK, network).score
    before, after = (score(from_tokens(TASK, own.given).question) for own in (plain, provoked))
    assert float(jnp.mean(after)) > float(jnp.mean(before))
    half = WORLD.provoked(config, network, jax.tree.map(lambda leaf: leaf[16:], plain), keys[16:])
    np.testing.assert_array_equal(half.given, provoked.given[16:])  # however it is sliced


def test_what_no_speaker_has_said_is_not_learned(network):
    config = compose_config(
        ["world=dialogue", "task=request", "task.foreign_share=0.5", *SMALL, OFF]
    )
    tokens = WORLD.sample(config, KEYS).given
    answers, targets = network(tokens), tokens[:, 1:]
    strange = is_foreign(config.task, tokens)[:, 1:]
    assert strange.any()
    log_p = jax.nn.log_softmax(answers[:, :-1])
    said = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    counted = (targets != 0) & ~strange
    expected = -float(jnp.sum(said * counted) / jnp.sum(counted))
    assert float(WORLD.loss(config, answers, tokens)) == pytest.approx(expected, rel=1e-5)


def test_without_attacks_training_reads_what_was_drawn(network):
    plain = WORLD.sample(CONFIG, KEYS)
    assert WORLD.provoked(CONFIG, network, plain, KEYS) is plain
    with pytest.raises(command.ConfigError, match="needs task=request"):
        compose_config(["world=dialogue", "train.attacked_share=0.5"])
    with pytest.raises(command.ConfigError, match="needs task=request"):
        compose_config(["world=dialogue", "task.foreign_share=0.5"])


def test_from_python_options_are_checked_as_well():
    with pytest.raises(command.ConfigError, match="must be a list of some of none, self_reminder"):
        command.attack(AttackConfig(run_dir="x", defences=["prayer"]))
