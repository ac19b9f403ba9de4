"""Multipliers: the update rule, and convergence to the exact dual of a problem with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.align import lagrangian


def test_projected_ascent_by_hand():
    control = lagrangian()
    state = control.init(jnp.array([0.0, 0.5]))
    seen = []
    for violation in ([0.2, -0.4], [0.1, -1.0], [-1.0, 0.3]):
        state = control.update(state, jnp.array(violation), step_size=jnp.array(1.0))
        seen.append(np.asarray(state.multipliers))
    np.testing.assert_allclose(seen, [[0.2, 0.1], [0.3, 0.0], [0.0, 0.3]], atol=1e-6)
    np.testing.assert_allclose(state.average, np.mean(seen, axis=0), atol=1e-6)
    assert int(state.steps) == 3


def test_pid_by_hand():
    """Stooke et al. 2020, algorithm 2, with K_I inside the integral."""
    control = lagrangian()
    state = control.init(jnp.zeros(1))
    integral, last, expected, found = 0.0, None, [], []
    for v in (0.5, 0.8, -0.2, 0.1, -3.0):
        integral = max(integral + 0.1 * v, 0.0)
        change = 0.0 if last is None else max(v - last, 0.0)
        expected.append(max(integral + 0.5 * v + 2.0 * change, 0.0))
        last = v
        state = control.update(state, jnp.array([v]), step_size=0.1, proportional=0.5, derivative=2.0)
        found.append(float(state.multipliers[0]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert min(expected) == 0.0


def test_log_moves_by_factors_and_never_reaches_zero():
    control = lagrangian(parametrisation="log")
    state = control.init(jnp.array([0.5]))
    state = control.update(state, jnp.array([1.0]), step_size=0.1)
    assert float(state.multipliers[0]) == pytest.approx(0.5 * np.exp(0.1), rel=1e-6)
    state = control.update(state, jnp.array([-20.0]), step_size=0.1)
    assert 0.0 < float(state.multipliers[0]) < 0.1


def test_step_size_zero_is_the_same_program_without_a_constraint():
    traces = []
    control = lagrangian()

    @jax.jit
    def run(step_size):
        traces.append(1)
        step = lambda state, v: (control.update(state, v, step_size=step_size), state.multipliers)  # noqa: E731
        return jax.lax.scan(step, control.init(jnp.zeros(2)), jnp.ones((5, 2)))[0].multipliers

    assert run(jnp.array(0.0)).tolist() == [0.0, 0.0]
    assert run(jnp.array(0.5)).tolist() == [2.5, 2.5]
    assert len(traces) == 1


@pytest.mark.parametrize("parametrisation", ["linear", "log"])
def test_maximum_holds_and_does_not_wind_up(parametrisation):
    control = lagrangian(parametrisation=parametrisation)
    state = control.init(jnp.array([1.0]))
    for _ in range(50):
        state = control.update(state, jnp.array([1.0]), step_size=1.0, maximum=2.0)
    assert float(state.multipliers[0]) == pytest.approx(2.0)
    state = control.update(state, jnp.array([-1.0]), step_size=1.0, maximum=2.0)
    assert float(state.multipliers[0]) < 1.5


@pytest.mark.parametrize(
    ("parametrisation", "gains"), [("linear", (0.0, 0.0)), ("linear", (0.3, 0.3)), ("log", (0.0, 0.0))]
)
def test_converges_to_the_exact_dual(parametrisation, gains):
    """max -(x - 2)^2 with x <= 0.5: x* = 0.5, and 2 (2 - x*) = multiplier = 3."""
    control = lagrangian(parametrisation=parametrisation)

    def step(state, _):
        x = 2.0 - state.multipliers / 2.0  # the maximiser of the Lagrangian
        state = control.update(state, x - 0.5, step_size=0.2, proportional=gains[0], derivative=gains[1])
        return state, x

    state, xs = jax.lax.scan(step, control.init(jnp.array([0.1])), length=400)
    assert float(state.multipliers[0]) == pytest.approx(3.0, abs=1e-3)
    assert float(xs[-1, 0]) == pytest.approx(0.5, abs=1e-3)


def test_an_idle_constraint_costs_nothing():
    control = lagrangian()
    state = control.init(jnp.array([1.0]))
    for _ in range(20):
        state = control.update(state, jnp.array([-0.5]), step_size=0.2)
    assert float(state.multipliers[0]) == 0.0


def test_same_under_vmap():
    control = lagrangian()
    violations = jnp.array([[0.5], [-0.5], [0.1]])
    states = jax.vmap(lambda v: control.update(control.init(jnp.zeros(1)), v, step_size=1.0))(violations)
    np.testing.assert_allclose(states.multipliers, [[0.5], [0.0], [0.1]], atol=1e-6)


def test_mistakes_are_named():
    control = lagrangian()
    with pytest.raises(ValueError, match="violation: dim M=3 disagrees with M=2 of multipliers"):
        control.update(control.init(jnp.zeros(2)), jnp.zeros(3), step_size=0.1)
    with pytest.raises(ValueError, match="parametrisation: 'exp'"):
        lagrangian(parametrisation="exp")
