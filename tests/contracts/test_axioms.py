"""The rules beyond sums: each against its equation or an independent oracle, and the axioms that name it."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.test_util import check_grads

from rlx.contracts import (
    CES,
    OWA,
    Borda,
    Contract,
    Copeland,
    Leximin,
    MaximalLottery,
    MaxMin,
    Nash,
    Stakeholder,
    Term,
    WeightedSum,
    aggregate,
    compile,
)

RNG = np.random.default_rng(0)
UTILITIES = RNG.uniform(0.05, 1.0, (64, 3)).astype(np.float32)
WEIGHTS = jnp.array([0.5, 1.0, 2.0])
EQUAL = jnp.ones(3)
# of one text: [..., K] -> [...]
RULES = {
    "leximin": lambda u, w: aggregate.leximin(u, w, resolution=0.1),
    "owa": lambda u, w: aggregate.owa(u, w, jnp.array([3.0, 2.0, 1.0], u.dtype)),
    "ces -2": lambda u, w: aggregate.ces(u, w, -2.0),
    "ces 0": lambda u, w: aggregate.ces(u, w, 0.0),
    "ces 0.5": lambda u, w: aggregate.ces(u, w, 0.5),
    "ces 1": lambda u, w: aggregate.ces(u, w, 1.0),
}


@pytest.mark.parametrize("name", RULES)
def test_more_for_one_is_better(name):
    """Strong Pareto and strict monotonicity: every order weight here is positive."""
    before = RULES[name](jnp.asarray(UTILITIES), WEIGHTS)
    for k in range(3):
        more = UTILITIES.copy()
        more[:, k] += 0.1
        assert jnp.all(RULES[name](jnp.asarray(more), WEIGHTS) > before)


@pytest.mark.parametrize("name", RULES)
def test_equal_weights_are_symmetric(name):
    for order in itertools.permutations(range(3)):
        mixed = RULES[name](jnp.asarray(UTILITIES[:, list(order)]), EQUAL)
        np.testing.assert_allclose(mixed, RULES[name](jnp.asarray(UTILITIES), EQUAL), rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_equal_utilities_are_their_own_value(name):
    same = jnp.tile(jnp.linspace(0.1, 2.0, 8)[:, None], (1, 3))
    np.testing.assert_allclose(RULES[name](same, WEIGHTS), same[:, 0], rtol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_scale(name):
    """Homogeneous of degree 1: one unit for all may change."""
    scaled = RULES[name](jnp.asarray(UTILITIES * 7.0), WEIGHTS)
    np.testing.assert_allclose(scaled, 7.0 * RULES[name](jnp.asarray(UTILITIES), WEIGHTS), rtol=1e-5)


@pytest.mark.parametrize("name", ["leximin", "owa"])
def test_shift(name):
    shifted = RULES[name](jnp.asarray(UTILITIES - 3.0), WEIGHTS)
    np.testing.assert_allclose(shifted, RULES[name](jnp.asarray(UTILITIES), WEIGHTS) - 3.0, atol=1e-5)


@pytest.mark.parametrize("name", ["leximin", "owa", "ces -2", "ces 0", "ces 0.5"])
def test_a_gift_from_the_richer_to_the_poorer_is_better(name):
    """Pigou and Dalton, for equal weights; strict for these."""
    before = np.sort(UTILITIES, axis=1)
    after = before.copy()
    gift = 0.25 * (before[:, 2] - before[:, 0])
    after[:, 0] += gift
    after[:, 2] -= gift
    moved = gift > 1e-3
    assert np.all((RULES[name](jnp.asarray(after), EQUAL) > RULES[name](jnp.asarray(before), EQUAL))[moved])


@pytest.mark.parametrize("name", [*RULES, "owa min"])
def test_who_has_no_weight_does_not_count(name):
    rules = RULES | {"owa min": lambda u, w: aggregate.owa(u, w, jnp.array([1.0, 0.0, 0.0]))}
    weights = jnp.array([1.0, 0.0, 2.0])
    other = UTILITIES.copy()
    other[:, 1] = -50.0
    np.testing.assert_allclose(
        rules[name](jnp.asarray(other), weights), rules[name](jnp.asarray(UTILITIES), weights), rtol=1e-5
    )


# leximin


def leximin_key(row):
    return tuple(sorted(row))


def test_leximin_orders_a_grid_as_sorted_tuples_do():
    """Every pair of utilities on a grid of tenths: Python compares the sorted tuples."""
    grid = np.array(list(itertools.product(range(0, 11, 2), repeat=3)), np.float32) / 10
    value = np.asarray(aggregate.leximin(jnp.asarray(grid), EQUAL, resolution=0.2), np.float64)
    keys = [leximin_key(row) for row in grid]
    for i, j in itertools.combinations(range(0, len(grid), 3), 2):
        if keys[i] == keys[j]:
            assert value[i] == pytest.approx(value[j], abs=1e-6)
        else:
            assert (keys[i] < keys[j]) == (value[i] < value[j])


def test_leximin_order_is_exact():
    rows = np.round(RNG.uniform(0, 1, (40, 4)), 1).astype(np.float32)
    keys = [leximin_key(row) for row in rows]
    expected = [sum(other > key for other in keys) for key in keys]
    assert aggregate.leximin_order(jnp.asarray(rows), jnp.ones(4)).tolist() == expected
    # what a minimum cannot tell apart
    assert aggregate.leximin_order(jnp.array([[0.1, 0.5], [0.1, 0.6]]), jnp.ones(2)).tolist() == [1, 0]
    # left out: the first stakeholder
    left_out = aggregate.leximin_order(jnp.array([[0.0, 0.6], [0.9, 0.5]]), jnp.array([0.0, 2.0]))
    assert left_out.tolist() == [0, 1]


def test_leximin_is_its_equation():
    ratio = 0.1 / 1.1
    ranked = np.sort(UTILITIES.astype(np.float64), axis=1)
    expected = ranked @ ratio ** np.arange(3) / np.sum(ratio ** np.arange(3))
    np.testing.assert_allclose(aggregate.leximin(jnp.asarray(UTILITIES), EQUAL, resolution=0.1), expected, rtol=1e-5)


def test_leximin_says_how_many_float32_can_keep():
    """The last place must still be seen: resolution * ratio^(K - 1) above 2^-22."""
    people = tuple(Stakeholder(f"p{k}", {"x": 1.0}) for k in range(7))
    term = Term("x", lambda b: b["x"])
    compile(Contract("c", terms=(term,), stakeholders=people[:6], aggregate=Leximin(0.1)))
    with pytest.raises(ValueError, match=r"float32 keeps 6 stakeholders in leximin order at resolution 0.1, not 7"):
        compile(Contract("c", terms=(term,), stakeholders=people, aggregate=Leximin(0.1)))
    # and the sixth place is seen
    a = jnp.full((6,), 0.5)
    b = a.at[5].add(0.1)
    assert aggregate.leximin(b, jnp.ones(6), resolution=0.1) > aggregate.leximin(a, jnp.ones(6), resolution=0.1)


# ordered weighted averaging


@pytest.mark.parametrize(
    ("order_weights", "expected"),
    [([1, 0, 0], np.min), ([0, 0, 1], np.max), ([1, 1, 1], np.mean), ([0, 1, 0], np.median)],
)
def test_owa_has_the_extremes_the_mean_and_the_median(order_weights, expected):
    found = aggregate.owa(jnp.asarray(UTILITIES), EQUAL, jnp.asarray(order_weights, jnp.float32))
    np.testing.assert_allclose(found, expected(UTILITIES, axis=1), rtol=1e-5)


def test_owa_with_equal_order_weights_is_the_weighted_mean():
    found = aggregate.owa(jnp.asarray(UTILITIES), WEIGHTS, jnp.ones(3))
    np.testing.assert_allclose(found, UTILITIES @ np.array([0.5, 1.0, 2.0]) / 3.5, rtol=1e-5)


def test_owa_with_importance_by_hand():
    """Torra 1997's construction: v = (1/2, 1/2, 0), p = (1/2, 1/4, 1/4) for utilities 3, 1, 2.

    In ascending order: 1 (P = 1/4), 2 (P = 1/2), 3 (P = 1). F is linear through (1/3, 1/2), (2/3, 1), (1, 1), so
    F = 3/8, 3/4, 1 and omega = 3/8, 3/8, 1/4: W = 3/8 + 6/8 + 3/4 = 15/8.
    """
    value = aggregate.owa(jnp.array([3.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0]))
    assert float(value) == pytest.approx(float(Fraction(15, 8)), rel=1e-6)


# constant elasticity of substitution


@pytest.mark.parametrize("rho", [-30.0, -5.0, -1.0, -0.1, -1e-2, -1e-3, -1e-5, 1e-6, 1e-4, 3e-3, 0.03, 0.3, 0.9, 1.0])
def test_ces_is_its_equation(rho):
    share = np.array([0.5, 1.0, 2.0]) / 3.5
    expected = np.sum(share * UTILITIES.astype(np.float64) ** rho, axis=1) ** (1 / rho)
    np.testing.assert_allclose(aggregate.ces(jnp.asarray(UTILITIES), WEIGHTS, rho), expected, rtol=2e-5)


def test_ces_goes_to_the_geometric_mean_and_the_minimum():
    share = np.array([0.5, 1.0, 2.0]) / 3.5
    geometric = np.prod(UTILITIES.astype(np.float64) ** share, axis=1)
    np.testing.assert_allclose(aggregate.ces(jnp.asarray(UTILITIES), WEIGHTS, 0.0), geometric, rtol=1e-5)
    lowest = aggregate.ces(jnp.asarray(UTILITIES), WEIGHTS, -1e4)
    np.testing.assert_allclose(lowest, UTILITIES.min(axis=1), rtol=1e-3)


def test_ces_slope_in_rho_is_finite_and_right_at_0():
    """d log W / d rho at 0 is half the variance of log u."""
    u = jnp.asarray(UTILITIES)
    share = np.array([0.5, 1.0, 2.0]) / 3.5
    logs = np.log(UTILITIES.astype(np.float64))
    variance = np.sum(share * (logs - np.sum(share * logs, 1, keepdims=True)) ** 2, axis=1)
    slope = jax.vmap(jax.grad(lambda r, row: jnp.log(aggregate.ces(row, WEIGHTS, r))), in_axes=(None, 0))(0.0, u)
    np.testing.assert_allclose(slope, variance / 2, rtol=1e-4)


@pytest.mark.parametrize("rho", [-3.0, 0.0, 0.5, 1.0])
def test_ces_below_the_floor_is_increasing_with_finite_gradients(rho):
    u = jnp.array([-2.0, -0.1, 0.0, 9.99e-3, 1.001e-2, 0.5])
    others = jnp.array([0.3, 0.6])
    value, slope = jax.vmap(jax.value_and_grad(lambda x: aggregate.ces(jnp.append(others, x), EQUAL, rho, floor=1e-2)))(
        u
    )
    assert jnp.all(jnp.isfinite(value))
    assert jnp.all(jnp.isfinite(slope))
    assert jnp.all(jnp.diff(value) >= -1e-6)  # what the last place of the others' utilities hides
    assert jnp.all(slope >= -1e-6)


# voting


def by_counting(utilities, weights):
    """Borda points and pairwise majorities in exact arithmetic."""
    utilities = [[float(x) for x in row] for row in utilities]
    share = [Fraction(float(w)) / sum(Fraction(float(x)) for x in weights) for w in weights]
    size = len(utilities)
    margin = [
        [sum(s * ((a[k] > b[k]) - (a[k] < b[k])) for k, s in enumerate(share)) for b in utilities] for a in utilities
    ]
    points = [Fraction(1, 2) + sum(row, Fraction(0)) / (2 * (size - 1)) for row in margin]
    wins = [Fraction(sum((m > 0) - (m < 0) for m in row), size - 1) for row in margin]
    return margin, points, wins


def test_votes_are_counted():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        u = np.round(rng.uniform(0, 1, (5, 4)), 1).astype(np.float32)  # with ties
        w = rng.integers(1, 4, 4).astype(np.float32)
        margin, points, wins = by_counting(u, w)
        np.testing.assert_allclose(
            aggregate.margins(jnp.asarray(u), jnp.asarray(w)), np.array(margin, float), atol=1e-6
        )
        np.testing.assert_allclose(aggregate.borda(jnp.asarray(u), jnp.asarray(w)), np.array(points, float), atol=1e-6)
        np.testing.assert_allclose(aggregate.copeland(jnp.asarray(u), jnp.asarray(w)), np.array(wins, float), atol=1e-6)


# Who prefers whom, from Condorcet's own example as told by Young 1988, "Condorcet's theory of voting", table 1:
# 60 voters on A, B, C: 23 A>B>C, 17 B>C>A, 2 B>A>C, 10 C>A>B, 8 C>B>A
YOUNG = [(23, "ABC"), (17, "BCA"), (2, "BAC"), (10, "CAB"), (8, "CBA")]


def test_condorcets_sixty_voters():
    u = jnp.asarray([[-order.index(name) for _, order in YOUNG] for name in "ABC"], jnp.float32)
    w = jnp.asarray([count for count, _ in YOUNG], jnp.float32)
    m = aggregate.margins(u, w) * 60
    # 33 prefer A to B, 42 B to C, 35 C to A: a cycle
    np.testing.assert_allclose([m[0, 1], m[1, 2], m[2, 0]], [2 * 33 - 60, 2 * 42 - 60, 2 * 35 - 60], atol=1e-4)
    points = aggregate.borda(u, w) * 60 * 2
    np.testing.assert_allclose(points, [58, 69, 53], atol=1e-3)  # A: 33 + 25; B: 27 + 42; C: 18 + 35
    np.testing.assert_allclose(aggregate.copeland(u, w), [0.0, 0.0, 0.0], atol=1e-6)
    # the lottery of a cycle chooses each as often as the other two beat each other: 24 : 10 : 6
    np.testing.assert_allclose(aggregate.maximal_lottery(m), [24 / 40, 10 / 40, 6 / 40], atol=1e-6)


@pytest.mark.parametrize("rule", [Borda(), Copeland(), MaximalLottery()])
def test_only_the_order_of_each_voter_counts(rule):
    params = rule.init(["a", "b", "c"])
    plain = rule.apply(jnp.asarray(UTILITIES[:6]), WEIGHTS, params)
    stretched = np.stack([np.exp(3 * UTILITIES[:6, 0]), UTILITIES[:6, 1] ** 3 - 5, 100 * UTILITIES[:6, 2]], axis=1)
    np.testing.assert_allclose(rule.apply(jnp.asarray(stretched, jnp.float32), WEIGHTS, params), plain, atol=1e-5)


@pytest.mark.parametrize("rule", [Borda(), Copeland(), MaximalLottery()])
def test_votes_are_neutral_and_anonymous(rule):
    params = rule.init(["a", "b", "c"])
    u = jnp.asarray(UTILITIES[:5])
    plain = rule.apply(u, WEIGHTS, params)
    texts, people = np.array([3, 0, 4, 1, 2]), np.array([2, 0, 1])
    np.testing.assert_allclose(rule.apply(u[texts], WEIGHTS, params), plain[texts], atol=1e-5)
    np.testing.assert_allclose(rule.apply(u[:, people], WEIGHTS[people], params), plain, atol=1e-5)


@pytest.mark.parametrize("rule", [Copeland(), MaximalLottery()])
def test_a_condorcet_winner_wins(rule):
    params = rule.init(["a", "b", "c"])
    found = 0
    for seed in range(30):
        u = np.random.default_rng(seed).uniform(0, 1, (5, 3)).astype(np.float32)
        m = np.asarray(aggregate.margins(jnp.asarray(u), WEIGHTS))
        winner = [i for i in range(5) if all(m[i, j] > 0 for j in range(5) if j != i)]
        if winner:
            found += 1
            assert int(jnp.argmax(rule.apply(jnp.asarray(u), WEIGHTS, params))) == winner[0]
            lottery = aggregate.maximal_lottery(jnp.asarray(m))
            np.testing.assert_allclose(lottery, np.eye(5)[winner[0]], atol=1e-6)
    assert found > 10


def test_borda_may_leave_the_condorcet_winner_behind():
    """3 voters A>B>C, 2 voters B>C>A: A beats both, B has more points (Condorcet's objection)."""
    u = jnp.array([[3.0, 1.0], [2.0, 3.0], [1.0, 2.0]])
    points = aggregate.borda(u, jnp.array([3.0, 2.0]))
    assert int(jnp.argmax(points)) == 1
    assert int(jnp.argmax(aggregate.copeland(u, jnp.array([3.0, 2.0])))) == 0


@pytest.mark.parametrize("rule", [Borda(), Copeland()])
def test_votes_are_monotone(rule):
    params = rule.init(["a", "b", "c"])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        less = rng.uniform(0, 1, (5, 3)).astype(np.float32)
        more = less.copy()
        more[2, rng.integers(3)] += 0.5
        assert rule.apply(jnp.asarray(more), WEIGHTS, params)[2] >= rule.apply(jnp.asarray(less), WEIGHTS, params)[2]


def odd_games(size, high, count, seed):
    """Antisymmetric with odd integers off the diagonal: the lottery is unique (Laffond, Laslier and Le Breton 1997)."""
    half = np.triu(2 * np.random.default_rng(seed).integers(-high, high, (count, size, size)) + 1.0, 1)
    return half - np.swapaxes(half, 1, 2)


def by_linear_programme(game):
    size = len(game)
    solved = scipy.optimize.linprog(
        np.zeros(size),
        A_ub=-game.T,
        b_ub=np.zeros(size),
        A_eq=np.ones((1, size)),
        b_eq=[1.0],
        bounds=[(0, None)] * size,
    )
    return solved.x


@pytest.mark.parametrize("size", [2, 3, 5, 8])
@pytest.mark.parametrize("high", [1, 5])
def test_unique_lotteries_are_the_linear_programmes(size, high):
    games = odd_games(size, high, 40, seed=size)
    found = jax.jit(aggregate.maximal_lottery)(jnp.asarray(games, jnp.float32))
    np.testing.assert_allclose(found, [by_linear_programme(game) for game in games], atol=1e-5)


@pytest.mark.parametrize("kind", ["real", "integer", "ties", "tiny", "huge", "low rank"])
@pytest.mark.parametrize("size", [2, 4, 7, 16])
def test_no_alternative_beats_the_lottery(size, kind):
    """Also where it is not unique: p^T M >= -1e-5 of the largest margin."""
    rng = np.random.default_rng(size)
    half = {
        "real": lambda: rng.normal(size=(50, size, size)),
        "integer": lambda: rng.integers(-9, 10, (50, size, size)).astype(float),
        "ties": lambda: rng.integers(-1, 2, (50, size, size)).astype(float),
        "tiny": lambda: 1e-20 * rng.normal(size=(50, size, size)),
        "huge": lambda: 1e20 * rng.normal(size=(50, size, size)),
        "low rank": lambda: np.einsum("ni,nj->nij", rng.normal(size=(50, size)), rng.normal(size=(50, size))),
    }[kind]()
    half = np.triu(half, 1)
    games = half - np.swapaxes(half, 1, 2)
    p = np.asarray(jax.jit(aggregate.maximal_lottery)(jnp.asarray(games, jnp.float32)), np.float64)
    assert np.all(p >= 0)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-6)
    largest = np.maximum(np.abs(games).max(axis=(1, 2)), 1e-300)
    assert np.min(np.einsum("ni,nij->nj", p, games) / largest[:, None]) >= -1e-5


def test_lotteries_by_hand():
    np.testing.assert_allclose(aggregate.maximal_lottery(jnp.zeros((4, 4))), np.full(4, 0.25), atol=1e-6)
    # rock, paper, scissors and a well that paper alone beats: rock is dominated by the well
    well = jnp.array([[0, -1, 1, -1], [1, 0, -1, 1], [-1, 1, 0, -1], [1, -1, 1, 0.0]])
    np.testing.assert_allclose(aggregate.maximal_lottery(well), [0, 1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(aggregate.maximal_lottery(3e-8 * well), [0, 1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    assert aggregate.maximal_lottery(jnp.zeros((1, 1))).tolist() == [1.0]


def test_lotteries_do_not_see_losers_or_count_clones():
    """Agenda consistency, and composition consistency (Brandl, Brandt and Seedig 2016): two clones share one's part."""
    cycle = np.array([[0, 3, -1], [-3, 0, 5], [1, -5, 0.0]])
    p = np.asarray(aggregate.maximal_lottery(jnp.asarray(cycle, jnp.float32)))
    with_loser = np.pad(cycle, ((0, 1), (0, 1)))
    with_loser[:3, 3], with_loser[3, :3] = 1.0, -1.0
    np.testing.assert_allclose(aggregate.maximal_lottery(jnp.asarray(with_loser, jnp.float32)), [*p, 0.0], atol=1e-5)
    cloned = cycle[np.ix_([0, 0, 1, 2], [0, 0, 1, 2])]
    shared = np.asarray(aggregate.maximal_lottery(jnp.asarray(cloned, jnp.float32)))
    np.testing.assert_allclose([shared[0] + shared[1], *shared[2:]], p, atol=1e-5)
    np.testing.assert_allclose(shared[0], shared[1], atol=1e-5)  # equals are treated equally


def test_a_smooth_lottery_is_the_equilibrium_with_a_barrier():
    """(M p)_i + mu / p_i is the same for all i: nobody gains by moving."""
    game = jnp.asarray(odd_games(5, 4, 1, seed=3)[0], jnp.float32)
    game = game / jnp.max(jnp.abs(game))
    for mu in (0.01, 0.1, 1.0):
        p = aggregate.maximal_lottery(game, temperature=mu)
        np.testing.assert_allclose(game @ p + mu / p, 5 * mu, rtol=1e-3, atol=1e-5)
    close = aggregate.maximal_lottery(game, temperature=1e-5)
    np.testing.assert_allclose(close, aggregate.maximal_lottery(game), atol=1e-2)


def test_gradients_of_a_smooth_lottery_are_finite_differences():
    with jax.enable_x64(True):
        game = jnp.asarray(odd_games(4, 4, 1, seed=5)[0], jnp.float64) / 10
        aim = jnp.arange(4.0, dtype=jnp.float64)

        def value(half):
            upper = jnp.triu(half, 1)
            # the largest margin sets the scale: keep it fixed
            return jnp.vdot(
                aggregate.maximal_lottery((upper - upper.T).at[0, 1].set(1.0).at[1, 0].set(-1.0), temperature=0.1), aim
            )

        check_grads(value, (game,), order=1, modes=["fwd", "rev"])
    exact = jax.grad(lambda m: jnp.vdot(aggregate.maximal_lottery(m), jnp.arange(4.0)))(jnp.asarray(game, jnp.float32))
    assert not np.any(exact)


def test_the_lotterys_value_is_monotone():
    """The proof in `MaximalLottery`: one text gains for one voter, the others stay; 7 equal votes leave no ties."""
    rule, params = MaximalLottery(), {"temperature": jnp.zeros(())}
    value = jax.jit(jax.vmap(lambda u, w: rule.apply(u, w, params)))
    rng = np.random.default_rng(0)
    less = rng.uniform(0, 1, (3000, 5, 7)).astype(np.float32)
    weights = jnp.ones((3000, 7))
    more = less.copy()
    more[np.arange(3000), 0, rng.integers(7, size=3000)] += rng.choice([0.1, 0.3, 0.9], 3000).astype(np.float32)
    before, after = value(jnp.asarray(less), weights)[:, 0], value(jnp.asarray(more), weights)[:, 0]
    assert jnp.all(after >= before - 2e-5)
    assert jnp.sum(after > before + 1e-3) > 300
    # while probabilities are not: the same text may be chosen less often
    lottery = jax.jit(jax.vmap(lambda u, w: aggregate.maximal_lottery(aggregate.margins(u, w))))
    chosen = [np.asarray(lottery(jnp.asarray(u), weights))[:, 0] for u in (less, more)]
    assert np.any(chosen[1] < chosen[0] - 0.01)


# what holds for all


ALL = [WeightedSum(), Nash(-0.1), MaxMin(0.1), Leximin(0.1), OWA((3, 2, 1)), CES(-1.0)]
ALL += [Borda(4), Copeland(4), MaximalLottery(4), Borda(4, 0.1), Copeland(4, 0.1), MaximalLottery(4, 0.1)]


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_gradients_are_finite_everywhere(rule):
    """At ties, zeros, far below any floor, with a weight of 0, for one and for many."""
    params = {n: jnp.asarray(v) for n, v in rule.init(["a", "b", "c"]).items()}
    hard = jnp.array(
        [[0.0, 0, 0], [1, 1, 1], [-5, 2, 2], [0.3, 0.3, 0.9], [1e-3, 1e-3, 0], [-1e4, 1e4, 0], [7, 7, 8], [1, 0, 0]]
    )
    for weights in (EQUAL, jnp.array([0.0, 1.0, 2.0])):
        gradients = jax.grad(lambda u, w, p: jnp.sum(rule.apply(u, w, p)), argnums=(0, 1, 2))(hard, weights, params)
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))
        assert bool(jnp.all(jnp.isfinite(rule.apply(hard, weights, params))))


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_a_contract_takes_every_rule(rule):
    terms = tuple(Term(f"t{k}", lambda b, k=k: b["x"][:, k]) for k in range(3))
    people = tuple(Stakeholder(f"p{k}", {f"t{k}": 1.0}) for k in range(3))
    reward = compile(Contract("r", terms=terms, stakeholders=people, aggregate=rule))
    batch = {"x": jnp.asarray(UTILITIES[:16])}
    out = reward(reward.params, batch)
    params = {n: jnp.asarray(v) for n, v in rule.init(["p0", "p1", "p2"]).items()}
    np.testing.assert_allclose(out.total, rule.apply(jnp.asarray(UTILITIES[:16]), EQUAL, params), rtol=1e-5, atol=1e-6)
    groups = jax.vmap(reward, in_axes=(None, 0))(reward.params, {"x": batch["x"].reshape(4, 4, 3)})
    np.testing.assert_allclose(groups.total.reshape(-1), out.total, rtol=1e-5, atol=1e-5)
    traces = []
    step = jax.jit(lambda p: (traces.append(1), reward(p, batch).total)[1])
    step(reward.params)
    step(jax.tree.map(lambda x: x * 1.1, reward.params))
    assert len(traces) == 1


def test_groups_are_apart():
    """A text of another group changes nothing."""
    rule = Borda(4)
    u = UTILITIES[:8].copy()
    before = rule.apply(jnp.asarray(u), WEIGHTS, rule.init([]))
    u[5] = 9.0
    np.testing.assert_array_equal(before[:4], rule.apply(jnp.asarray(u), WEIGHTS, rule.init([]))[:4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Borda(group=1), "group: 1 is neither None"),
        (lambda: Copeland(group=2.0), "group: 2.0 is neither None"),
        (lambda: MaximalLottery(temperature=-1.0), "temperature: -1.0"),
        (lambda: Leximin(0.0), "resolution: 0.0"),
        (lambda: CES(1.5), "rho: 1.5"),
        (lambda: CES(float("nan")), "rho: nan"),
        (lambda: CES(floor=0.0), "floor: 0.0"),
        (lambda: OWA(()), "order_weights: .* no positive weight"),
        (lambda: OWA((1.0, -1.0)), "order_weights: -1.0"),
        (lambda: OWA((0.0, float("nan"))), "order_weights: nan"),
        (lambda: Nash(float("nan")), "disagreement: nan"),
        (lambda: Nash({"a": float("inf")}), "disagreement: inf"),
        (lambda: aggregate.maximal_lottery(jnp.ones((3, 2))), r"margins: expected dims \[..., A, A\]"),
        (
            lambda: Borda(3).apply(jnp.ones((4, 2)), jnp.ones(2), {"temperature": 0.0}),
            "a batch of 4 texts .* groups of 3",
        ),
    ],
)
def test_bad_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_owa_must_fit_the_stakeholders():
    term = Term("x", lambda b: b["x"])
    with pytest.raises(ValueError, match="order_weights: 2 values for 1 stakeholders"):
        compile(Contract("c", terms=(term,), stakeholders=(Stakeholder("me", {"x": 1.0}),), aggregate=OWA((1, 1))))
