"""Formulas over tokens against their definitions, written as plain recursion over one text."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from rlx.contracts import (
    Always,
    And,
    Chance,
    Contract,
    CVaR,
    Event,
    Eventually,
    Expect,
    Not,
    Or,
    Stakeholder,
    Term,
    Until,
    compile,
)
from rlx.contracts._constraints import events_in

x = Term("x", lambda b: b["x"], level="token", range=(-2.0, 2.0))
y = Term("y", lambda b: b["y"], level="token", range=(-2.0, 2.0))
s = Term("s", lambda b: b["s"], range=(-2.0, 2.0))
one = Term("one", lambda b: b["s"] * 0.0)
INF = float("inf")


def reward_of(*constraints):
    return compile(
        Contract("t", terms=(one,), stakeholders=(Stakeholder("me", {"one": 1.0}),), constraints=tuple(constraints))
    )


def by_definition(formula, text, t=0):
    """(robustness, truth) at token t of a text: Donzé and Maler 2010, definition 3; windows end with the text.

    `text` is a dict of the unmasked values: lists for x and y, one number for s.
    """
    length = len(text["x"])

    def window(part):
        last = length - 1 if part.last is None else t + part.last
        return range(t + part.first, min(last, length - 1) + 1)

    match formula:
        case Event():
            value = text[formula.term.name]
            value = value[t] if isinstance(value, list) else value
            above = formula.relation in (">", ">=")
            truth = {
                "<": value < formula.value,
                "<=": value <= formula.value,
                ">": value > formula.value,
                ">=": value >= formula.value,
            }[formula.relation]
            return (value - formula.value if above else formula.value - value), truth
        case Not():
            robustness, truth = by_definition(formula.of, text, t)
            return -robustness, not truth
        case And():
            parts = [by_definition(part, text, t) for part in formula.parts]
            return min(p[0] for p in parts), all(p[1] for p in parts)
        case Or():
            parts = [by_definition(part, text, t) for part in formula.parts]
            return max(p[0] for p in parts), any(p[1] for p in parts)
        case Always():
            parts = [by_definition(formula.of, text, i) for i in window(formula)]
            return min((p[0] for p in parts), default=INF), all(p[1] for p in parts)
        case Eventually():
            parts = [by_definition(formula.of, text, i) for i in window(formula)]
            return max((p[0] for p in parts), default=-INF), any(p[1] for p in parts)
        case Until():
            found, holds = -INF, False
            for i in window(formula):
                right = by_definition(formula.right, text, i)
                before = [by_definition(formula.left, text, j) for j in range(t, i)]
                found = max(found, min([right[0], *(p[0] for p in before)]))
                holds = holds or (right[1] and all(p[1] for p in before))
            return found, holds
    raise TypeError(formula)


GRID = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])  # levels and values meet: robustness 0 occurs
windows = st.tuples(st.integers(0, 3), st.none() | st.integers(0, 5)).map(
    lambda w: (w[0], None if w[1] is None else w[0] + w[1])
)
events = st.builds(Event, st.sampled_from([x, y, s]), st.sampled_from(["<", "<=", ">", ">="]), GRID)


def bigger(inner):
    some = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return (
        st.builds(Not, inner)
        | st.builds(And, some)
        | st.builds(Or, some)
        | st.builds(lambda of, w: Always(of, *w), inner, windows)
        | st.builds(lambda of, w: Eventually(of, *w), inner, windows)
        | st.builds(lambda a, b, w: Until(a, b, *w), inner, inner, windows)
    )


formulas = st.recursive(events, bigger, max_leaves=5).map(Always)  # token-level comparisons need a token


@settings(max_examples=80, deadline=None)
@given(formulas | formulas.map(lambda f: Eventually(f.of, 1, 2)), st.data())
def test_robustness_and_truth_are_the_definitions(formula, data):
    size, length = 4, 5
    rows = st.lists(st.lists(GRID, min_size=length, max_size=length), min_size=size, max_size=size)
    xs, ys = np.array(data.draw(rows)), np.array(data.draw(rows))
    ss = np.array(data.draw(st.lists(GRID, min_size=size, max_size=size)))
    mask = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=size, max_size=size))
    )
    hidden = np.where(mask, xs, np.nan)  # what is masked does not count, whatever it is
    batch = {
        "x": jnp.asarray(hidden, jnp.float32),
        "y": jnp.asarray(np.where(mask, ys, 9e9), jnp.float32),
        "s": jnp.asarray(ss, jnp.float32),
        "mask": jnp.asarray(mask),
    }
    reward = reward_of(formula)
    with jax.disable_jit():  # a new formula each time: compiling it would take a second
        out = reward(reward.params, batch)
    for row in range(size):
        text = {"x": xs[row][mask[row]].tolist(), "y": ys[row][mask[row]].tolist(), "s": float(ss[row])}
        if {event.term.name for event in events_in(formula)} == {"s"}:
            text["x"] = [0.0]  # without a token-level term the text is one token long
        if not text["x"]:
            # no token: an Always around it is true of nothing, an Eventually false
            assert bool(out.violated[row, 0]) == isinstance(formula, Eventually)
            continue
        robustness, truth = by_definition(formula, text)
        found = float(out.robustness[row, 0])
        assert bool(out.violated[row, 0]) == (not truth)
        if math.isfinite(robustness):
            assert found == robustness
        else:
            assert found * robustness > 0
            assert abs(found) <= 3.0  # what the declared range allows
        assert float(out.costs[row, 0]) == max(-found, 0.0)
        # the sign is the meaning
        assert not (found > 0 and not truth)
        assert not (found < 0 and truth)


FIXED = [
    Always(x < 1.0, 1, 3) & Eventually(y > 0.0),
    Until(x < 0.5, y > 0.5, 1, 2) | ~Always(Eventually(x > 0.0, 0, 1), 2),
    Always(Until(x > -1.0, (y > 0.0) & (s < 0.5))),
]


@pytest.mark.parametrize("formula", FIXED, ids=str)
def test_the_same_under_jit_and_vmap(formula):
    reward = reward_of(formula)
    rng = np.random.default_rng(0)
    draws = [rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0], (2, 6, 7)) for _ in range(2)]
    mask = rng.random((2, 6, 7)) < 0.8
    batch = {"x": draws[0], "y": draws[1], "s": draws[0][..., 0]}
    batch = {n: jnp.asarray(v, jnp.float32) for n, v in batch.items()} | {"mask": jnp.asarray(mask)}
    split = jax.vmap(reward, in_axes=(None, 0))(reward.params, batch)
    whole = reward(reward.params, jax.tree.map(lambda v: v.reshape(12, *v.shape[2:]), batch))
    np.testing.assert_array_equal(split.robustness.reshape(12, 1), whole.robustness)
    np.testing.assert_array_equal(split.violated.reshape(12, 1), whole.violated)
    for row in range(12):
        keep = mask.reshape(12, 7)[row]
        text = {"x": draws[0].reshape(12, 7)[row][keep].tolist(), "y": draws[1].reshape(12, 7)[row][keep].tolist()}
        robustness, truth = by_definition(formula, text | {"s": float(draws[0].reshape(12, 7)[row][0])})
        assert bool(whole.violated[row, 0]) == (not truth)
        if math.isfinite(robustness):
            assert float(whole.robustness[row, 0]) == robustness


def example(values, mask=None, **more):
    values = jnp.asarray(values, jnp.float32)
    mask = jnp.ones(values.shape, jnp.bool_) if mask is None else jnp.asarray(mask, jnp.bool_)
    return {"x": values, "y": values, "s": values[:, 0], "mask": mask} | more


@pytest.mark.parametrize(
    ("formula", "robustness"),
    [
        (Always(x < 1.0), [0.25, -0.5]),  # max is 0.75; 1.5
        (Eventually(x > 1.0), [-0.25, 0.5]),
        (Always(x < 1.0, 0, 1), [0.5, 0.75]),  # tokens 0 and 1
        (Always(x < 1.0, 1, 2), [0.25, -0.5]),
        (Until(x < 1.0, x > 0.6), [0.15, 0.25]),  # row 0: x2 = .75 > .6 by .15; row 1: min(.9, 1 - .75)
        (Always(Eventually(x > 0.0, 0, 1)), [0.5, 0.0]),  # from each token: .5, .75, .75 ; .25, 1.5, 1.5
        (~Always(x < 1.0), [-0.25, 0.5]),
        (Always(x < 1.0) & Eventually(x > 0.6), [0.15, -0.5]),
        (Always(x < 1.0) | Eventually(x > 0.6), [0.25, 0.9]),
    ],
    ids=str,
)
def test_by_hand(formula, robustness):
    if str(formula).startswith("Always(Eventually"):
        robustness = [0.5, 0.25]
    if str(formula).startswith("Until"):
        robustness = [0.15, 0.75]  # row 1: x2 = 1.5 > .6 by .9; before it 1 - .25 = .75 and 1 - .125
    reward = reward_of(formula)
    out = reward(reward.params, example([[0.5, 0.25, 0.75], [0.25, 0.125, 1.5]]))
    np.testing.assert_allclose(out.robustness[:, 0], robustness, atol=1e-6)


def test_a_formula_that_holds_costs_exactly_nothing():
    """Every kind of constraint, satisfied; formulas with a price, too; eager and under jit."""
    free = Contract("t", terms=(s,), stakeholders=(Stakeholder("me", {"s": 1.0}),))
    kinds = [Always(x < 1.5), Eventually(x > -1.0), Until(x < 1.5, x > -1.5), ~Always(x > 1.9), (s < 2.0) & (s > -2.0)]
    kinds += [Expect(s) <= 2.0, Chance(s > 1.9) <= 0.5, CVaR(s, 0.5) <= 2.0, Chance(Always(x < 1.5)) >= 0.5]
    batch = example([[0.5, 0.25, 0.75], [0.3, 0.125, 1.25]])
    plain = compile(free)
    expected = plain(plain.params, batch).total
    for of in kinds:
        contract = Contract("t", terms=(s,), stakeholders=free.stakeholders, constraints=(of,))
        reward = compile(contract)
        priced = reward.params | {"multipliers": jnp.full(1, 7.0 if of in kinds[:5] else 0.0)}
        for call in (reward, jax.jit(reward)):
            out = call(priced, batch)
            np.testing.assert_array_equal(out.total, expected)
            assert not np.any(out.violated)


def test_a_text_that_fails_pays_by_how_much():
    reward = reward_of(Always(x < 1.0))
    params = reward.params | {"multipliers": jnp.array([2.0])}
    out = reward(params, example([[0.5, 0.5], [1.5, 0.0]]))
    np.testing.assert_allclose(out.total, [0.0, -1.0])


def test_strict_and_loose_differ_at_equality():
    batch = example([[0.5]])
    for formula, violated in ((Always(x < 0.5), True), (Always(x <= 0.5), False), (~Always(x < 0.5), False)):
        reward = reward_of(formula)
        out = reward(reward.params, batch)
        assert bool(out.violated[0, 0]) == violated
        assert float(out.robustness[0, 0]) == 0.0


def test_a_value_that_is_not_a_number_satisfies_nothing():
    batch = example([[0.5, jnp.nan, 0.1]])
    for formula in (Always(x < 1.0), Eventually(x < 1.0), ~Always(x < 1.0), Until(x < 1.0, x > 2.0)):
        reward = reward_of(formula, Chance(formula) >= 0.5)
        out = reward(reward.params, batch)
        assert out.violated.tolist() == [[True, True]]
        assert np.isnan(np.asarray(out.costs)).all()


def test_holes_are_no_time():
    """Masked tokens are skipped: the second token of the text is the fourth of the row."""
    reward = reward_of(Always(x > 0.0, 1, 1))
    out = reward(reward.params, example([[9.0, -1.0, 9.0, 2.0, 9.0]], [[False, True, False, True, False]]))
    assert float(out.robustness[0, 0]) == 2.0


def test_gradients_are_finite_everywhere_and_differences_where_smooth():
    formula = Always(Eventually((x > 0.2) & (y < 0.9), 0, 2)) & Until(x < 1.0, y > 0.5, 1, 3)
    reward = reward_of(formula, CVaR(s, 0.5) <= 1.0, Chance(Always(x < 0.3)) <= 0.5)
    params = reward.params | {"multipliers": jnp.ones(3)}

    def total(params, values):
        return jnp.sum(reward(params, example(values)).total)

    ties = jnp.array([[0.5, 0.5, 0.5, 0.5], [0.2, 0.9, 1.0, 0.0], [9.0, -9.0, 0.0, 0.0]])
    for gradient in jax.tree.leaves(jax.grad(total, argnums=(0, 1))(params, ties)):
        assert np.all(np.isfinite(gradient))
    empty = example(ties, jnp.zeros((3, 4)))
    gradient = jax.grad(lambda v: jnp.sum(reward(params, empty | {"x": v}).total))(ties)
    assert np.all(np.isfinite(gradient))
    with jax.enable_x64(True):
        single = reward_of(formula)
        values = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 5)), jnp.float64)
        mask = jnp.ones((4, 5), jnp.bool_)

        def robustness(values, levels):
            batch = {"x": values, "y": -values, "s": values[:, 0], "mask": mask}
            return jnp.sum(single(single.params | {"levels": levels}, batch).robustness)

        levels = single.params["levels"].astype(jnp.float64)
        check_grads(robustness, (values, levels), order=1, modes=["fwd", "rev"], eps=1e-6)


def test_levels_are_parameters():
    reward = reward_of(Always((x < 1.0) & (y > -1.0)), CVaR(s, 0.5, at=0.25) <= 1.0, Chance(s > 0.75) <= 0.5)
    np.testing.assert_allclose(reward.params["levels"], [1.0, -1.0, 0.5, 0.25, 0.75])
    traces = []
    step = jax.jit(lambda p: (traces.append(1), reward(p, example([[0.5, 0.25]])).robustness)[1])
    assert float(step(reward.params)[0, 0]) == 0.5
    assert float(step(reward.params | {"levels": reward.params["levels"].at[0].set(0.75)})[0, 0]) == 0.25
    assert len(traces) == 1


def test_a_token_level_comparison_needs_a_token():
    with pytest.raises(ValueError, match="compares token-level term 'x' at no token; write Always"):
        reward_of((x < 1.0) & (s < 1.0))
    deep = x < 1.0
    for _ in range(40):
        deep = Always(deep)
    with pytest.raises(ValueError, match="nested deeper than 32"):
        reward_of(deep)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Always(x), TypeError, "Always: expected a formula"),
        (lambda: Always(x < 1.0, 2, 1), ValueError, "last: 1 is before first=2"),
        (lambda: Eventually(x < 1.0, -1), ValueError, "first: -1"),
        (lambda: Until(x < 1.0, x > 1.0, 0, 1.5), ValueError, r"last: 1\.5"),
        (lambda: And(()), ValueError, "And: no parts"),
        (lambda: x < float("nan"), ValueError, "value: nan"),
        (lambda: (x < 1.0) and (y < 1.0), TypeError, "write & |"),
        (lambda: CVaR(s, 1.0), ValueError, r"level: 1\.0"),
        (lambda: Expect(s) <= float("inf"), ValueError, "limit: inf"),
    ],
)
def test_bad_formulas_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
