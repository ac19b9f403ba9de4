"""Laws that every public function of arrays keeps; the table is cases.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from .case import Case
from .cases import CASES

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_close(actual: Any, expected: Any, rtol: float = 2e-5, atol: float = 2e-5) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(e, np.float64), rtol=rtol, atol=atol)


def is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_inexact(leaf) else leaf, tree)


def batched_only(case: Case) -> None:
    assert any(case.batch) or case.name.startswith("dense["), f"{case.name} has no batch to map over"


@each_case
def test_jit_changes_nothing(case: Case, key: jax.Array) -> None:
    args = case.make(key)
    assert_close(jax.jit(case.fn)(*args), case.fn(*args))


@each_case
def test_vmap_is_a_loop(case: Case) -> None:
    many = [case.make(jax.random.key(seed)) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    loop = [case.fn(*args) for args in many]
    assert_close(jax.vmap(case.fn)(*stacked), jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop))


@each_case
def test_eight_devices_change_nothing(case: Case, key: jax.Array) -> None:
    if not any(case.batch):
        batched_only(case)
        return
    args = case.make(key)
    whole = jax.jit(case.fn)(*args)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = tuple(PartitionSpec("batch") if batched else PartitionSpec() for batched in case.batch)
    sharded = jax.shard_map(case.fn, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("batch"))
    assert_close(jax.jit(sharded)(*args), whole)

    def split(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.reshape(8, -1, *leaf.shape[1:]), tree)

    parts = tuple(split(arg) if batched else arg for arg, batched in zip(args, case.batch, strict=True))
    mapped = jax.pmap(case.fn, in_axes=tuple(0 if batched else None for batched in case.batch))(*parts)
    assert_close(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), mapped), whole)


@pytest.mark.parametrize("case", [c for c in CASES if c.differentiable], ids=lambda case: case.name)
def test_gradient_is_finite_and_that_of_finite_differences(case: Case, key: jax.Array) -> None:
    args = case.make(key)
    with jax.enable_x64(True):
        args = cast(args, jnp.float64)
        inexact = [jax.tree.leaves(args[i]) for i in case.differentiable]
        assert all(is_inexact(leaf) for leaves in inexact for leaf in leaves)

        def scalar(*chosen: Any) -> jax.Array:
            full = list(args)
            for position, value in zip(case.differentiable, chosen, strict=True):
                full[position] = value
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(case.fn(*full)))

        chosen = tuple(args[i] for i in case.differentiable)
        gradients = jax.grad(scalar, argnums=tuple(range(len(chosen))))(*chosen)
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))
        if not case.gradient_is_detached:
            check_grads(scalar, chosen, order=1, modes=["rev"], atol=1e-6, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.half is not None], ids=lambda case: case.name)
def test_half_precision_keeps_its_dtype_and_is_close(case: Case, key: jax.Array) -> None:
    args = case.make(key)
    half = tuple(cast(arg, jnp.bfloat16) if i in case.half else arg for i, arg in enumerate(args))
    low = case.fn(*half)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(case.half_out)}
    exact = case.fn(*cast(half, jnp.float32))
    for a, e in zip(jax.tree.leaves(low), jax.tree.leaves(exact), strict=True):
        a, e = np.asarray(a, np.float32), np.asarray(e, np.float32)
        assert np.linalg.norm(a - e) <= 0.02 * np.linalg.norm(e)


@each_case
def test_two_values_are_traced_once(case: Case) -> None:
    traces = []

    @jax.jit
    def counted(*args: Any) -> Any:
        traces.append(1)
        return case.fn(*args)

    for seed in range(2):
        counted(*case.make(jax.random.key(seed)))
    assert len(traces) == 1


@pytest.mark.parametrize("case", [c for c in CASES if c.golden is not None], ids=lambda case: case.name)
def test_golden(case: Case) -> None:
    args, expected, source = case.golden
    assert source
    assert_close(case.fn(*args), jax.tree.map(jnp.asarray, expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.pad is not None], ids=lambda case: case.name)
def test_padding_changes_nothing(case: Case, key: jax.Array) -> None:
    args = case.make(key)
    padded, cut = case.pad(args)
    assert_close(cut(case.fn(*padded)), case.fn(*args))


def test_the_laws_catch_a_function_that_breaks_them(key: jax.Array) -> None:
    """A planted wrong function: batch statistics leak between examples."""

    def leaks(x: jax.Array) -> jax.Array:
        return x - jnp.mean(x, axis=0, keepdims=True)

    case = Case("leaks", leaks, lambda k: (jax.random.normal(k, (8, 2)),), (True,), differentiable=(0,))
    with pytest.raises(AssertionError):
        test_eight_devices_change_nothing(case, key)
