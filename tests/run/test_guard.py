"""The guard: an update that is not finite leaves the state bit for bit as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from rlx._tree import tree_sha256
from rlx.run import guard, guard_init
from rlx.run._guard import became_non_finite


def step_fn(state: Any, batch: Any, step: Any) -> Any:
    noise = jax.random.normal(jax.random.fold_in(state["key"], step), state["w"].shape)
    w = state["w"] + batch * noise
    new = {**state, "w": w, "half": state["half"] + batch.astype(jnp.bfloat16), "count": state["count"] + 1}
    return new, {"loss": jnp.sum(w), "other": batch}


def state() -> Any:
    return {
        "w": jnp.ones(3),
        "half": jnp.ones(2, jnp.bfloat16),
        "count": jnp.array(0, jnp.int32),
        "key": jax.random.key(1),
        "best": jnp.array(jnp.inf),
        "mask": jnp.array([0.0, -jnp.inf]),
    }


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f])
@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_update_changes_nothing(wrap: Any, poison: float) -> None:
    update = wrap(guard(step_fn))
    one, counts, _ = update(state(), guard_init(), jnp.array(0.5), 0)
    assert int(one["count"]) == 1
    two, counts, metrics = update(one, counts, jnp.array(poison), 1)
    assert tree_sha256(two) == tree_sha256(one)
    assert (int(counts.consecutive), int(counts.skipped), int(metrics["skipped"])) == (1, 1, 1)
    _, counts, _ = update(two, counts, jnp.array(poison), 2)
    assert (int(counts.consecutive), int(counts.skipped)) == (2, 2)
    three, counts, _ = update(two, counts, jnp.array(0.5), 3)
    assert (int(counts.consecutive), int(counts.skipped), int(three["count"])) == (0, 2, 2)


def test_it_never_gives_in_where_optax_does() -> None:
    """optax.apply_if_finite(max_consecutive_errors=3) applies the fourth; so says its docstring."""
    optimizer = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=3)
    params, poison = jnp.ones(2), jnp.full(2, jnp.nan)
    opt = optimizer.init(params)
    for _ in range(5):
        updates, opt = optimizer.update(poison, opt)
        params = optax.apply_updates(params, updates)
    assert jnp.isnan(params).any()

    update = jax.jit(guard(lambda w, batch, step: (w - batch, {})))
    ours, counts = jnp.ones(2), guard_init()
    for index in range(5):
        ours, counts, _ = update(ours, counts, poison, index)
    assert ours.tolist() == [1.0, 1.0]
    assert int(counts.consecutive) == 5


def test_watched_metrics_count() -> None:
    def step(w: Any, batch: Any, index: Any) -> Any:
        return w + 1, {"loss": batch, "other": jnp.array(jnp.nan)}

    w, counts, _ = guard(step)(jnp.zeros(()), guard_init(), jnp.array(jnp.nan), 0)
    assert (float(w), int(counts.skipped)) == (0.0, 1)
    w, counts, _ = guard(step)(jnp.zeros(()), guard_init(), jnp.array(1.0), 0)
    assert (float(w), int(counts.skipped)) == (1.0, 0)
    w, counts, _ = guard(step, watch=("other",))(jnp.zeros(()), guard_init(), jnp.array(1.0), 0)
    assert (float(w), int(counts.skipped)) == (0.0, 1)


def test_traced_once() -> None:
    traces = 0

    def step(w: Any, batch: Any, index: Any) -> Any:
        nonlocal traces
        traces += 1
        return w + batch, {"loss": batch}

    update = jax.jit(guard(step))
    w, counts = jnp.zeros(()), guard_init()
    for index in range(3):
        w, counts, _ = update(w, counts, jnp.array(1.0), index)
    assert traces == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {**s, "w": s["w"].astype(jnp.bfloat16)},
            r"leaf w goes in as float32\[3\] and comes out as bfloat16",
        ),
        (lambda s: {**s, "w": s["w"][:2]}, r"leaf w goes in as float32\[3\] and comes out as float32\[2\]"),
        (lambda s: {**s, "extra": s["w"]}, "it adds the state's leaf extra"),
        (lambda s: {k: v for k, v in s.items() if k != "w"}, "it loses the state's leaf w"),
    ],
)
def test_a_step_that_changes_the_state_s_form_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.jit(guard(lambda s, batch, step: (change(s), {})))(state(), guard_init(), None, 0)


def test_small_leaves_are_checked_together_and_one_nan_among_them_is_seen() -> None:
    """A reduction for each of 274 leaves took 24 of 52 s of compiling, and a sixth of a step of 0.5 s."""
    state = {f"{i:03}": jnp.ones(i + 1) for i in range(20)} | {"large": jnp.ones((300, 300)), "count": jnp.arange(3)}
    run = jax.jit(guard(lambda state, batch, step: (jax.tree.map(lambda x: x + batch.astype(x.dtype), state), {})))
    text = run.lower(state, guard_init(), jnp.array(1.0), 0).as_text()
    assert text.count("stablehlo.reduce(") == 2
    kept, counts, _ = run(state, guard_init(), jnp.array(jnp.nan), 0)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), kept, state))
    assert int(counts.skipped) == 1
    became = jax.jit(became_non_finite)
    for name in ("000", "019", "large"):
        new = {**state, name: state[name].at[0].set(jnp.inf)}
        assert bool(became(state, new))
        assert not bool(became(new, new))


def test_leaves_divided_along_explicit_axes_are_checked_too() -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        state = {"a": jax.device_put(jnp.ones((8, 4)), jax.P("x")), "b": jnp.ones(3)}
        run = jax.jit(guard(lambda state, batch, step: (jax.tree.map(lambda x: x * batch, state), {})))
        kept, counts, _ = run(state, guard_init(), jnp.array(2.0), 0)
        assert float(kept["a"].sum()) == 64
        assert jax.typeof(kept["a"]).sharding.spec == jax.P("x", None)
        _, counts, _ = run(state, counts, jnp.array(jnp.nan), 0)
        assert int(counts.skipped) == 1
