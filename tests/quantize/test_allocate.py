"""Bits under a budget: the best of all combinations, monotone, with the bytes of the file."""

import itertools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx import quantize, weights

CHOICES: tuple[Any, ...] = (2, 4, 8)


@st.composite
def tables(draw: Any) -> tuple[dict[str, dict[Any, float]], dict[str, dict[Any, int]]]:
    names = [f"w{i}" for i in range(draw(st.integers(1, 5)))]
    number = st.floats(-1, 10, allow_nan=False, width=32) | st.integers(0, 3).map(float)
    errors = {name: {bits: draw(number) for bits in CHOICES} for name in names}
    sizes = {name: {bits: draw(st.integers(0, 12)) for bits in CHOICES} for name in names}
    return errors, sizes


@settings(max_examples=150, deadline=None)
@given(tables(), st.integers(0, 60))
def test_it_is_the_best_of_all_combinations_and_a_larger_budget_is_no_worse(case: Any, budget: int) -> None:
    errors, sizes = case
    every = []
    for bits in itertools.product(CHOICES, repeat=len(errors)):
        chosen = dict(zip(errors, bits, strict=True))
        total = sum(errors[name][b] for name, b in chosen.items())
        every.append((total, sum(sizes[name][b] for name, b in chosen.items())))
    least = min(used for _, used in every)
    if budget < least:
        with pytest.raises(
            ValueError, match=re.escape(f"budget: {budget} bytes are too few, the least possible is {least}")
        ):
            quantize.allocate(errors, sizes, budget)
        return
    found = quantize.allocate(errors, sizes, budget)
    assert found.error == pytest.approx(min(total for total, used in every if used <= budget), abs=1e-9)
    assert found.bytes == sum(sizes[name][b] for name, b in found.bits.items()) <= budget
    assert found.error == pytest.approx(sum(errors[name][b] for name, b in found.bits.items()), abs=1e-9)
    assert list(found.bits) == list(errors)
    more = quantize.allocate(errors, sizes, budget + 3)
    assert more.error <= found.error


def test_a_hundred_weights_are_quick_and_fill_the_budget() -> None:
    rng = np.random.default_rng(0)
    shapes = {f"w{i}": tuple(int(n) for n in rng.integers(16, 512, 2)) for i in range(100)}
    sizes = {name: {bits: quantize.weight_bytes(shape, bits) for bits in CHOICES} for name, shape in shapes.items()}
    errors = {name: dict(zip(CHOICES, sorted(rng.exponential(1, 3))[::-1], strict=True)) for name in shapes}
    uniform = sum(row[4] for row in sizes.values())
    found = quantize.allocate(errors, sizes, uniform)
    assert uniform * 0.999 < found.bytes <= uniform
    assert found.error < sum(row[4] for row in errors.values())
    assert len(found.rule) == 100


def test_sensitivity_is_the_loss_of_one_weight_alone_and_feeds_the_rule() -> None:
    k = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": {"weight": jax.random.normal(k[0], (8, 8))},
        "b": {"kernel": 0.01 * jax.random.normal(k[1], (8, 4))},
    }
    x = jax.random.normal(k[2], (16, 8))

    def apply(p: Any) -> jax.Array:
        return jnp.tanh(x @ p["a"]["weight"].T) @ p["b"]["kernel"] + x @ p["a"]["weight"].T @ jnp.ones((8, 4))

    target = apply(params)
    errors = quantize.sensitivity(lambda p: jnp.mean(jnp.square(apply(p) - target)), params)
    assert errors.keys() == {"a.weight", "b.kernel"}
    rounded = quantize.quantize(params["b"]["kernel"].T, 2, scale="mse").dense().T
    alone = jnp.mean(jnp.square(apply({"a": params["a"], "b": {"kernel": rounded}}) - target))
    assert errors["b.kernel"][2] == pytest.approx(float(alone), rel=1e-4)
    assert errors["a.weight"][2] > errors["a.weight"][4] > errors["a.weight"][8] >= 0
    sizes = {"a.weight": {b: quantize.weight_bytes((8, 8), b) for b in CHOICES}}
    sizes["b.kernel"] = {b: quantize.weight_bytes((4, 8), b) for b in CHOICES}
    found = quantize.allocate(errors, sizes, sizes["a.weight"][8] + sizes["b.kernel"][2])
    assert found.bits == {"a.weight": 8, "b.kernel": 4}  # 8 bytes of codes take the 16 that 16 bytes take
    small = quantize.quantize_tree(params, found.rule)
    assert small["a"]["weight"].bits == 8


def test_bytes_are_codes_scales_and_zero_points() -> None:
    assert quantize.weight_bytes((64, 96), 8) == 64 * 96 + 64 * 12
    assert quantize.weight_bytes((3, 64, 96), 2) == 3 * (64 * 96 // 4 + 64 * 12)
    assert quantize.weight_bytes((3, 5), 2) == 16 + 3 * 12  # 30 bits, padded to a multiple of 16 bytes
    assert quantize.weight_bytes((4, 64), 4, block=32) == 128 + 4 * 2 * 4


@pytest.mark.slow
def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    """One weight more, one weight's bytes more; an operation and a tensor beside it are a few hundred."""
    pytest.importorskip("tensorflow")
    from rlx import export

    def size(bits: Any, out: int) -> int:
        w = quantize.quantize(jax.random.normal(jax.random.key(0), (out, 96)), bits)
        spec = [jax.ShapeDtypeStruct((1, 96), jnp.float32)]
        return export.to_tflite({"f": (lambda x: weights.matmul(x, w), spec)}, tmp_path / "m.tflite").bytes

    for bits in CHOICES:
        more = quantize.weight_bytes((512, 96), bits) - quantize.weight_bytes((128, 96), bits)
        assert abs(size(bits, 512) - size(bits, 128) - more) <= 64


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: quantize.allocate({}, {}, 5), ValueError, "errors: there is no weight"),
        (lambda: quantize.allocate({"a": {}}, {}, 5), ValueError, "errors: there is no weight, or one without"),
        (lambda: quantize.allocate({"a": {2: 1.0}}, {}, 5), ValueError, "sizes: has no bytes for a at [2] bits"),
        (
            lambda: quantize.allocate({"a": {2: float("nan")}}, {"a": {2: 1}}, 5),
            ValueError,
            "errors: that of a at [2] bits is not finite",
        ),
        (lambda: quantize.allocate({"a": {2: 1.0}}, {"a": {2: 0.5}}, 5), TypeError, "sizes['a'][2]: expected a whole"),
        (lambda: quantize.allocate({"a": {2: 1.0}}, {"a": {2: 1}}, 5.0), TypeError, "budget: expected a whole number"),
        (lambda: quantize.allocate({"a": {2: 1.0}}, {"a": {2: 6}}, 5), ValueError, "the least possible is 6"),
        (lambda: quantize.weight_bytes((4,), 2), ValueError, "shape: expected (..., out, in), got (4,)"),
        (lambda: quantize.weight_bytes((4, 6), 2, block=4), ValueError, "block: 4 does not divide the 6 inputs"),
        (lambda: quantize.weight_bytes((4, 6), 3), ValueError, "bits: 3 is not one of"),
        (lambda: quantize.sensitivity(lambda p: 0.0, {}, where="x"), ValueError, "where: 'x' matches no weight"),
        (lambda: quantize.sensitivity(lambda p: 0.0, {}, choices=()), ValueError, "choices: there are no bits to try"),
        (lambda: quantize.sensitivity(lambda p: 0.0, {}, choices=(3,)), ValueError, "choices: 3 is not one of"),
    ],
)
def test_mistakes_name_the_argument(call: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()
