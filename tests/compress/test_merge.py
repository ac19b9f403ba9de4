"""Merging beside a loop in numpy: the same groups, masses and means, whatever the padding, protection and number."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.compress import Merged, group_means, merge, unmerge


def alike(a: Any, b: Any, metric: str) -> float:
    if metric == "euclidean":
        return -float(np.sum(np.square(a - b)))
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300)


def loop(
    tokens: Any, mass: Any, features: Any, protected: Any, *, size: int, match: str, metric: str, part: int
) -> Any:
    """The rule, group by group, in float64."""
    stay, groups = 0, []
    for i in range(len(tokens)):
        if mass[i] > 0:
            kept = bool(protected[i]) and stay < size - 1
            stay += kept
            groups.append({"members": [i], "kept": kept})

    def feature(group: Any) -> Any:
        weights = mass[group["members"]].astype(np.float64)
        return np.average(features[group["members"]].astype(np.float64), axis=0, weights=weights)

    while len(groups) > size:
        free = [group for group in groups if not group["kept"]]
        found = []
        for i in range(0, len(free), 2) if match == "bipartite" else range(1, len(free)):
            others = range(1, len(free), 2) if match == "bipartite" else range(i)
            scores = [alike(feature(free[i]), feature(free[j]), metric) for j in others]
            best = int(np.argmax(scores))
            found.append((-scores[best], i, others[best]))
        most = max(1, len(free) // part)
        chosen = {i: j for _, i, j in sorted(found)[: min(len(groups) - size, most)]}
        for i in chosen:
            j = i
            while j in chosen:
                j = chosen[j]
            free[j].setdefault("new", []).extend(free[i]["members"])
        for group in free:
            group["members"] = group["members"] + group.pop("new", [])
        gone = [id(free[i]) for i in chosen]
        groups = [group for group in groups if id(group) not in gone]
    source = np.full(len(tokens), -1)
    out, total = np.zeros((size, tokens.shape[1])), np.zeros(size)
    for j, group in enumerate(groups):
        rows = group["members"]
        source[rows], total[j] = j, mass[rows].sum()
        out[j] = np.average(tokens[rows].astype(np.float64), axis=0, weights=mass[rows])
    return out, total, source


@pytest.mark.parametrize("match", ["bipartite", "nearest"])
@pytest.mark.parametrize(("metric", "part"), [("cosine", 2), ("euclidean", 2), ("euclidean", 5)])
@pytest.mark.parametrize("guard", [False, True])
def test_it_is_the_loop(match: Any, metric: Any, part: int, guard: bool) -> None:
    rng = np.random.default_rng(0)
    N = 13
    for size in (1, 5, 7, 12, 16):
        tokens, features = rng.normal(size=(4, N, 3)), rng.normal(size=(4, N, 2))
        mass = rng.integers(0, 4, (4, N)).astype(np.float32)
        protected = rng.random((4, N)) < (0.3 if guard else 0)

        @jax.jit
        def ours(tokens: Any, mass: Any, features: Any, protected: Any, size: int = size) -> Merged:
            kept = protected if guard else None
            return merge(tokens, mass, features, size=size, match=match, metric=metric, part=part, protected=kept)

        found = ours(jnp.float32(tokens), jnp.float32(mass), jnp.float32(features), jnp.array(protected))
        for i in range(4):
            given_ = tokens[i], mass[i], features[i], protected[i]
            out, total, source = loop(*given_, size=size, match=match, metric=metric, part=part)
            np.testing.assert_array_equal(found.source[i], source)
            np.testing.assert_array_equal(found.mass[i], total)
            np.testing.assert_allclose(found.tokens[i], out, atol=2e-6)


@partial(jax.jit, static_argnames=("size", "part"))
def merged(tokens: Any, mass: Any, protected: Any, *, size: int, part: int) -> Merged:
    return merge(tokens, mass, size=size, part=part, protected=protected)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 20]), st.sampled_from([1, 4, 9]), st.sampled_from([2, 6]), st.integers(0, 2**31 - 1))
def test_everything_is_somewhere(count: int, size: int, part: int, seed: int) -> None:
    """Whatever is protected and missing: no more than `size` are left, the masses add up, groups are not empty."""
    rng = np.random.default_rng(seed)
    mass = jnp.float32(rng.integers(0, 3, count))
    protected = jnp.array(rng.random(count) < rng.random())
    tokens = jnp.float32(rng.normal(size=(count, 2)))
    found = merged(tokens, mass, protected, size=size, part=part)
    there = int(np.sum(np.asarray(mass) > 0))
    assert float(found.mass.sum()) == float(mass.sum())
    assert int(np.sum(np.asarray(found.mass) > 0)) == min(there, size)
    np.testing.assert_array_equal(np.asarray(found.source) < 0, np.asarray(mass) == 0)
    assert np.asarray(found.source).max() < size
    alone = np.flatnonzero(np.asarray(protected & (mass > 0)))[: size - 1]
    for i in alone:
        group = found.source[i]
        assert int(jnp.sum(found.source == group)) == 1
        np.testing.assert_allclose(found.tokens[group], tokens[i], rtol=1e-6)


def test_one_merge_a_round_is_agglomeration_by_centroids() -> None:
    """scipy has it, with ties nowhere."""
    from scipy.cluster.hierarchy import fcluster, linkage

    tokens = np.random.default_rng(0).normal(size=(20, 3))
    found = jax.jit(lambda x: merge(x, size=6, match="nearest", metric="euclidean", part=20))(jnp.float32(tokens))
    clusters = fcluster(linkage(tokens, "centroid"), 6, "maxclust")
    same = clusters[:, None] == clusters[None, :]
    np.testing.assert_array_equal(found.source[:, None] == found.source[None, :], same)


def test_enough_room_changes_nothing() -> None:
    tokens = jax.random.normal(jax.random.key(0), (2, 6, 3))
    found = jax.jit(lambda x: merge(x, size=8))(tokens)
    np.testing.assert_array_equal(found.tokens[:, :6], tokens)
    np.testing.assert_array_equal(found.mass, [[1.0] * 6 + [0.0] * 2] * 2)
    np.testing.assert_array_equal(unmerge(found.tokens, found.source), tokens)


def test_equal_tokens_merge_first_and_the_first_of_equals() -> None:
    tokens = jnp.array([[0.0], [9.0], [0.0], [0.0], [3.0], [0.0]])
    found = merge(tokens, size=4, metric="euclidean")
    np.testing.assert_array_equal(found.source, [1, 0, 1, 1, 2, 3])
    again = jax.jit(jax.vmap(lambda x: merge(x, size=4, metric="euclidean").source))(jnp.stack([tokens] * 3))
    np.testing.assert_array_equal(again, jnp.stack([found.source] * 3))


def test_merged_tokens_weigh_as_all_of_them_in_attention() -> None:
    """Equal tokens merge, and with log(mass) attention does not notice."""
    from rlx.compress import Memory, attend

    few = jax.random.normal(jax.random.key(0), (4, 8))
    many = few[jnp.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 3])]
    q = jax.random.normal(jax.random.key(1), (5, 1, 8))

    def read(tokens: jax.Array, mass: jax.Array) -> jax.Array:
        keys = tokens[:, None]
        return attend(q, Memory(keys=keys, values=keys, log_mass=jnp.log(mass)[:, None]))

    @jax.jit
    def both(many: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = merge(many, size=6, metric="euclidean")
        return read(many, jnp.ones(10)), read(found.tokens, found.mass)

    whole, fewer = both(many)
    np.testing.assert_allclose(fewer, whole, atol=1e-6)


def test_the_gradient_is_that_of_the_means() -> None:
    tokens = jax.random.normal(jax.random.key(0), (9, 3))
    mass = jnp.array([1.0, 2.0, 1.0, 0.0, 3.0, 1.0, 1.0, 0.0, 2.0])
    weights = jax.random.normal(jax.random.key(1), (3, 3))
    source = merge(tokens, mass, size=3).source

    def loss(tokens: jax.Array) -> jax.Array:
        return jnp.sum(weights * merge(tokens, mass, size=3).tokens)

    def by_hand(tokens: jax.Array) -> jax.Array:
        share = mass[:, None] * (source[:, None] == jnp.arange(3)[None]).astype(jnp.float32)
        return jnp.sum(weights * (share.T @ tokens) / jnp.sum(share, axis=0)[:, None])

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(tokens), jax.grad(by_hand)(tokens), atol=1e-6)


def test_padding_and_what_is_in_it_changes_nothing() -> None:
    tokens = jax.random.normal(jax.random.key(0), (9, 3))
    found = merge(tokens, size=4)
    wide = jnp.full((14, 3), jnp.nan).at[2:11].set(tokens)
    mass = jnp.zeros(14).at[2:11].set(1.0)
    padded, gradient = jax.jit(
        lambda x: (merge(x, mass, size=4), jax.grad(lambda x: jnp.sum(merge(x, mass, size=4).tokens ** 2))(x))
    )(wide)
    np.testing.assert_array_equal(padded.tokens, found.tokens)
    np.testing.assert_array_equal(padded.source[2:11], found.source)
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert bool(jnp.all(unmerge(padded.tokens, padded.source)[:2] == 0))


def test_other_arrays_follow_the_groups() -> None:
    tokens = jax.random.normal(jax.random.key(0), (3, 9, 2))
    mass = jnp.arange(27.0).reshape(3, 9)
    found = merge(tokens, mass, size=4)
    np.testing.assert_array_equal(group_means(tokens, mass, found.source, size=4), found.tokens)


def test_half_precision_sums_in_single() -> None:
    tokens = jnp.full((4096, 1), 1.0, jnp.bfloat16)
    found = jax.jit(lambda x: merge(x, size=1, metric="euclidean"))(tokens[:512])
    assert found.tokens.dtype == jnp.bfloat16
    assert found.mass.dtype == jnp.float32
    assert float(found.tokens[0, 0]) == 1.0
    assert float(found.mass[0]) == 512.0


X = jnp.zeros((4, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: merge(X, size=0), ValueError, "size"),
        (lambda: merge(X, size=2.0), TypeError, "size"),
        (lambda: merge(X, size=2, part=1), ValueError, "part"),
        (lambda: merge(X, size=2, metric="dot"), ValueError, "metric"),
        (lambda: merge(X, size=2, match="all"), ValueError, "match"),
        (lambda: merge(X.astype(int), size=2), TypeError, "tokens"),
        (lambda: merge(X, jnp.ones(5), size=2), ValueError, "mass"),
        (lambda: merge(X, jnp.ones(4, int), size=2), TypeError, "mass"),
        (lambda: merge(X, None, jnp.zeros((5, 2)), size=2), ValueError, "similarity"),
        (lambda: merge(X, size=2, protected=jnp.zeros(3, bool)), ValueError, "protected"),
        (lambda: merge(X, size=2, protected=jnp.zeros(4)), TypeError, "protected"),
        (lambda: unmerge(X, jnp.zeros((2, 4), int)), ValueError, "source"),
        (lambda: unmerge(X, jnp.zeros(4)), TypeError, "source"),
        (lambda: group_means(X, None, jnp.zeros(5, int), size=2), ValueError, "source"),
    ],
)
def test_mistakes_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
