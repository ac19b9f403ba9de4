"""What the linter names does fail or differ, what it does not name is what JAX computes; and it names the line."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments import bench_export
from rlx import export, quantize, weights
from rlx.export import _tflite
from rlx.models import decoder, encoder

SLOW = pytest.mark.slow
RNG = np.random.default_rng(0)
X, V, SQUARE = (RNG.standard_normal(shape).astype(np.float32) for shape in ((3, 4), (8,), (4, 4)))
IMAGE, KERNEL = (
    RNG.standard_normal((1, 8, 8, 3)).astype(np.float32),
    RNG.standard_normal((3, 3, 3, 4)).astype(np.float32),
)
IDS, INTS = np.array([0, 2, 4], np.int32), np.array([-7, 5, 3, -1], np.int32)
TABLE = RNG.standard_normal((5, 4)).astype(np.float32)
SMALL = {bits: quantize.quantize(jnp.asarray(SQUARE), bits) for bits in (8, 2)}
ROWS = quantize.quantize(jnp.asarray(TABLE), 8)
PATCHES = quantize.quantize(jnp.asarray(KERNEL.reshape(-1, 4).T), 2)
NHWC = ("NHWC", "HWIO", "NHWC")
BYTES = np.array([1, 200, 3, 7], np.uint8)


def spec(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(array), np.asarray(array).dtype)


def findings(fn: Any, *arrays: Any) -> list[export.Finding]:
    return export.lint({"f": (fn, [spec(a) for a in arrays])})


def half(fn: Any, dtype: Any) -> Any:
    return lambda *x: fn(*(a.astype(dtype) for a in x)).astype(jnp.float32)


def transposed(size: int, stride: int, padding: str) -> Any:
    kernel = np.ones((size, size, 3, 4), np.float32) * np.arange(1, 1 + size, dtype=np.float32)[:, None, None, None]
    return lambda x: lax.conv_transpose(x, kernel, (stride, stride), padding, dimension_numbers=NHWC)


def conv(x: Any, kernel: Any, **options: Any) -> Any:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC, **options)


def random(x: Any) -> Any:
    return x + jax.random.normal(jax.random.key(0), x.shape)


# operation: function, arrays
MISSING: dict[str, tuple[Any, ...]] = {
    "top_k": (lambda x: lax.top_k(x, 2), V),
    "approx_top_k": (lambda x: lax.approx_max_k(x, 2), V),
    "sort": (jnp.argsort, V),
    "random_bits": (random, V),
    "random_fold_in": (lambda i: jax.random.bits(jax.random.fold_in(jax.random.key(0), i), (3,)), np.int32(3)),
    "random_split": (lambda x: jax.random.permutation(jax.random.key(0), x), V),
    "scatter-add": (lambda x, i: jax.ops.segment_sum(x, i, 3), V[:3], IDS),
    "scatter-mul": (lambda x, i: x.at[i].mul(2.0), TABLE, IDS),
    "scatter-min": (lambda x, i: x.at[i].min(0.0), TABLE, IDS),
    "scatter-max": (lambda x, i: x.at[i].max(0.0), TABLE, IDS),
    "select_and_scatter_add": (
        jax.grad(lambda x: jnp.sum(lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID") ** 2)),
        V,
    ),
    "cholesky": (lambda x: jnp.linalg.cholesky(x @ x.T + 4 * jnp.eye(4)), SQUARE),
    "qr": (lambda x: jnp.linalg.qr(x)[1], SQUARE),
    "svd": (lambda x: jnp.linalg.svd(x)[1], SQUARE),
    "eigh": (lambda x: jnp.linalg.eigh(x + x.T)[0], SQUARE),
    "lu": (jnp.linalg.inv, SQUARE),
    "triangular_solve": (lambda x: jax.scipy.linalg.solve_triangular(x, jnp.ones(4)), SQUARE),
    "fft": (lambda x: jnp.abs(jnp.fft.fft(x)), V),
    "fft, inverse": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x)), V),
    "fft, twelve": (lambda x: jnp.abs(jnp.fft.rfft(x)), X.reshape(-1)),
    "complex": (lambda x: jnp.abs(lax.complex(x, x)), V),
    "add of complex": (lambda x: jnp.abs(jnp.fft.rfft(x) + jnp.fft.rfft(2 * x)), V),
    **{name: (getattr(lax, name), np.tanh(V)) for name in ("sinh", "cosh", "asin", "acos", "asinh", "atanh", "erf")},
    "acosh": (lax.acosh, 1 + V**2),
    "nextafter": (lax.nextafter, V, V[::-1].copy()),
    "population_count": (lax.population_count, INTS),
    "clz": (lax.clz, INTS),
    "shift_left": (lambda x: x << 2, INTS),
    "and": (lambda x, y: x & y, INTS, INTS[::-1].copy()),
    "or": (lambda x, y: x | y, INTS, INTS[::-1].copy()),
    "xor": (lambda x, y: (x > 0) ^ (y > 0), V, V[::-1].copy()),
    "reduce": (lambda x: lax.reduce(x, np.float32(0), lambda a, b: a + b * b, (0,)), V),
    "reduce_xor": (lambda x: lax.reduce(x, np.int32(0), lax.bitwise_xor, (0,)), INTS),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), V),
    "cumlogsumexp": (lax.cumlogsumexp, V),
    "round": (lax.round, V),
    "debug_print": (lambda x: (jax.debug.print("x"), x + 1)[1], V),
    "pure_callback": (lambda x: jax.pure_callback(np.tanh, spec(V), x), V),
    "dot_general": (jnp.matmul, INTS.reshape(2, 2), INTS.reshape(2, 2)),
    "dot_general, int8 by a constant": (
        lambda x: lax.dot(x, jnp.ones((4, 2), jnp.int8), preferred_element_type=jnp.int32),
        np.ones((3, 4), np.int8),
    ),
    "dot_general, bfloat16": (half(jnp.matmul, jnp.bfloat16), X, SQUARE),
    "dot_general, float16": (half(jnp.matmul, jnp.float16), X, SQUARE),
    "add, bfloat16": (half(lambda x: x + x, jnp.bfloat16), X),
    "tanh, float16": (half(jnp.tanh, jnp.float16), X),
    "concatenate, float16": (half(lambda x: jnp.concatenate([x, x]), jnp.float16), X),
    "add, uint8": (lambda x: x + x[::-1], BYTES),
    "max, uint8": (lambda x: jnp.maximum(x, jnp.uint8(2)), BYTES),
    "gt, uint8": (lambda x: x > jnp.uint8(2), BYTES),
    "iota, uint8": (lambda x: jax.nn.one_hot(x, 5), BYTES),
    "mul, int8": (lambda x: x * x[::-1], BYTES.view(np.int8)),
    "reduce_sum, int8": (lambda x: jnp.sum(x, dtype=jnp.int8), BYTES.view(np.int8)),
    "cumsum, int16": (lambda x: jnp.cumsum(x, dtype=jnp.int16), BYTES.astype(np.int16)),
    "transpose, int16": (lambda x: x.reshape(2, 2).T, BYTES.astype(np.int16)),
    "div, uint32": (lambda x: lax.div(x.astype(jnp.uint32), jnp.uint32(3)).astype(jnp.int32), INTS),
    "conv_general_dilated, integers": (
        lambda x: conv(x, jnp.ones((3, 3, 3, 4), jnp.int8), preferred_element_type=jnp.int32),
        np.ones((1, 8, 8, 3), np.int8),
    ),
    "conv_general_dilated, batch groups": (lambda x: conv(x, KERNEL, batch_group_count=2), np.repeat(IMAGE, 2, axis=0)),
    "conv_general_dilated, padding": (
        lambda x: lax.conv_general_dilated(
            x, KERNEL, (1, 1), ((1, 1), (1, 1)), lhs_dilation=(2, 2), dimension_numbers=NHWC
        ),
        IMAGE,
    ),
}
DIFFER: dict[str, tuple[Any, ...]] = {
    "infinity": (lambda x: jnp.where(x > 0, x, -jnp.inf), V),
    "infinity in an array": (lambda x: x + np.array([0, -np.inf, 0, 1], np.float32), V[:4]),
    "infinity, all masked": (lambda x: jax.nn.softmax(jnp.where(x > 100, x, -jnp.inf)), V),
    "infinity, in a scan": (lambda x: lax.scan(lambda c, y: (c, jnp.where(y > 0, y, jnp.inf)), 0.0, x)[1], V),
    "rem": (lambda x, y: lax.rem(x, y + 3), INTS, np.array([0, 1, 2, 1], np.int32)),  # once run with zeros
    "rem of floats": (lambda x: jnp.fmod(x, 3.0), 9 * V),
    "shift_right_logical": (lambda x: lax.shift_right_logical(x, jnp.int32(1)), INTS),
    "shift_right_arithmetic": (lambda x: lax.shift_right_arithmetic(x, jnp.uint8(1)), BYTES),
    "gather": (lambda i: jnp.take(jnp.asarray(TABLE), i, axis=0, mode="clip"), IDS + 3),
    "conv_general_dilated, SAME": (transposed(3, 2, "SAME"), IMAGE),
    "conv_general_dilated, SAME of three": (transposed(4, 3, "SAME"), IMAGE),
}
FINE: dict[str, tuple[Any, ...]] = {
    "gelu": (lambda x: (jax.nn.gelu(x), jax.nn.gelu(x, approximate=False), jax.nn.silu(x), jax.nn.softplus(x)), X),
    "softmax": (lambda x: (jax.nn.softmax(x), jax.nn.log_softmax(x), jax.nn.logsumexp(x, axis=1)), X),
    "norms": (lambda x: (x / jnp.linalg.norm(x, axis=1, keepdims=True), jnp.var(x, axis=1)), X),
    "attention": (lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True), IMAGE.reshape(1, 8, 3, 8)),
    "argmax": (lambda x: (jnp.argmax(x, axis=1), jnp.max(x, axis=1), jnp.cumsum(x, axis=1), lax.cummax(x)), X),
    "mod": (
        lambda x, y: (jnp.mod(x, y + 3), y // 2, jnp.mod(x.astype(jnp.float32), 4.0)),
        INTS,
        np.array([1, 2, 3, 4], np.int32),
    ),
    "round": (lambda x: (jnp.round(4 * x), jnp.floor(x), jnp.sign(x), x.astype(jnp.int32)), X),
    "float division": (lambda x: x // 0.5, X),
    "take": (lambda i: (jnp.asarray(TABLE)[i], jnp.take(jnp.asarray(TABLE), i, axis=0)), IDS),
    "set": (lambda x, i: (x.at[i].set(2.0), lax.dynamic_update_slice(x, jnp.ones((1, 4)), (i[0], 0))), TABLE, IDS),
    "bytes": (lambda x: x.astype(jnp.float32) / 255, BYTES),
    "scan": (lambda x: lax.scan(lambda c, y: (c + y, c * y), jnp.float32(0), x), V),
    "while": (lambda x, n: lax.fori_loop(0, n, lambda i, c: c * 2, x), V, np.int32(3)),
    "cond": (lambda p, x: lax.cond(p, jnp.sin, jnp.cos, x), np.bool_(True), V),
    "rfft": (lambda x: jnp.abs(jnp.fft.rfft(x)), V),
    "convolutions": (
        lambda x: (conv(x, KERNEL), conv(x, np.ones((3, 3, 1, 6), np.float32), feature_group_count=3)),
        IMAGE,
    ),
    "transposed": (
        lambda x: (transposed(2, 2, "SAME")(x), transposed(4, 2, "SAME")(x), transposed(3, 2, "VALID")(x)),
        IMAGE,
    ),
    "pooling": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"), IMAGE),
    "clip": (lambda x: (jnp.clip(x, 0.0, jnp.inf), jnp.max(x, initial=-jnp.inf), x > -jnp.inf), X),
    "least number as a mask": (lambda x: jax.nn.softmax(jnp.where(x > 0, x, jnp.finfo(jnp.float32).min)), X),
    "int8 product": (
        partial(lax.dot, preferred_element_type=jnp.int32),
        np.ones((3, 4), np.int8),
        np.ones((4, 2), np.int8),
    ),
    "half-precision constants": (lambda x: x @ jnp.asarray(SQUARE, jnp.bfloat16).astype(jnp.float32), X),
    "low bits": (lambda x: weights.matmul(x, SMALL[2]), X),
    "rows of low bits": (lambda i: weights.take(ROWS, i), IDS),
    "a kernel of low bits": (lambda x: conv(x, weights.dense(PATCHES).T.reshape(3, 3, 3, 4)), IMAGE),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_has_no_builtin_is_named(name: str) -> None:
    found = [one for one in findings(*MISSING[name]) if one.kind == "no builtin"]
    assert name.partition(",")[0].partition(" ")[0] in {one.operation for one in found}
    assert all(one.what and one.instead for one in found)


@pytest.mark.parametrize("name", DIFFER)
def test_what_differs_is_named(name: str) -> None:
    assert {(one.operation, one.kind) for one in findings(*DIFFER[name])} == {
        (name.partition(",")[0].partition(" ")[0], "differs")
    }


@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_is_not_named(name: str) -> None:
    assert findings(*FINE[name]) == []


def converted(case: tuple[Any, ...], folder: Path) -> tuple[list[Any], list[Any]]:
    fn, *arrays = case
    written = export.to_tflite({"f": (fn, [spec(a) for a in arrays])}, folder / "m.tflite")
    return export.run_tflite(written.path, "f", *arrays), jax.tree.leaves(jax.jit(fn)(*arrays))


@SLOW
@pytest.mark.parametrize("name", MISSING)
def test_what_has_no_builtin_does_fail(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tflite, "lint", lambda signatures: [])
    with pytest.raises((ValueError, NotImplementedError), match=r"TensorFlow Lite|converter|LiteRT|host_callbacks"):
        converted(MISSING[name], tmp_path)


@SLOW
@pytest.mark.parametrize("name", DIFFER)
def test_what_differs_does_differ(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tflite, "lint", lambda signatures: [])
    if name == "gather":
        with pytest.raises(RuntimeError, match="out of bounds"):
            converted(DIFFER[name], tmp_path)
    elif name.startswith("conv"):
        with pytest.raises(ValueError, match=r"returns .* in TensorFlow Lite, for .* in JAX"):
            converted(DIFFER[name], tmp_path)
    else:
        (actual,), (expected,) = converted(DIFFER[name], tmp_path)
        assert actual.shape == expected.shape
        assert not np.allclose(actual, expected, rtol=1e-5, equal_nan=True)


@SLOW
@pytest.mark.parametrize("name", FINE)
def test_what_is_fine_is_what_jax_computes(name: str, tmp_path: Path) -> None:
    actual, expected = converted(FINE[name], tmp_path)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@SLOW
def test_what_no_linter_can_see(tmp_path: Path) -> None:
    """NaN is lost in a greatest number, in argmax and in a product of rounded activations; docs/export.md says so."""
    bad = np.array([[1, np.nan, 3, 4]], np.float32)
    fn = lambda x: (jnp.max(x, axis=1), jnp.argmax(x, axis=1), weights.matmul(x, SMALL[8]))  # noqa: E731
    assert findings(fn, bad) == []
    (most, place, product), expected = converted((fn, bad), tmp_path)
    assert (most, place) == (4, 3)
    assert np.isfinite(product).all()
    assert np.isnan(expected[0]).all()
    assert np.isnan(expected[2]).all()


# Lines


def line_of(fn: Any, text: str) -> str:
    lines, start = inspect.getsourcelines(fn)
    (number,) = [start + i for i, line in enumerate(lines) if text in line and "line_of" not in line]
    return f"{__file__}:{number}"


def nested(x: jax.Array) -> Any:
    @jax.custom_vjp
    def custom(x: jax.Array) -> jax.Array:
        return lax.erf(x)  # in custom_vjp

    custom.defvjp(lambda x: (custom(x), None), lambda _, g: (g,))
    inside = jax.jit(lambda x: lax.sinh(x))  # in jit
    _, a = lax.scan(lambda c, y: (c, jnp.sort(y)), 0.0, x)  # in scan
    b = lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, lax.asin(c[1])), (0, x))[1]  # in while
    c = lax.cond(jnp.all(x > 0), lambda x: lax.cosh(x), lambda x: x, x)  # in cond
    d = jax.checkpoint(lambda x: lax.acos(x))(x)  # in remat
    e = lax.while_loop(lambda c: lax.clz(c) > 3, lambda c: c + 1, 0)  # in a condition
    return custom(x), inside(x), a, b, c, d, e


def test_the_line_is_named_inside_everything() -> None:
    found = {one.operation: one.place for one in findings(nested, X)}
    where = {
        "erf": "in custom_vjp", "sinh": "in jit", "sort": "in scan", "asin": "in while", "cosh": "in cond",
        "acos": "in remat", "clz": "in a condition",
    }  # fmt: skip
    assert found == {operation: line_of(nested, f"# {text}") for operation, text in where.items()}


def test_a_function_of_jax_itself_has_no_line() -> None:
    (found,) = findings(jnp.sort, V)
    assert found.place == ""
    assert str(found).startswith("sort in 'f': TensorFlow Lite has no such operation; sort on the host")


def test_the_line_is_the_users_not_the_librarys() -> None:
    config = encoder.Config(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, kind="bert"
    )
    params = encoder.init(jax.random.key(0), config)
    fn = lambda ids: lax.top_k(encoder.apply(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), config, ids), 1)  # noqa: E731
    found = findings(fn, np.zeros((1, 4), np.int32))
    assert {one.place.partition(":")[0] for one in found} == {__file__}
    assert {"top_k", "dot_general"} <= {one.operation for one in found}


# Models, and to_tflite


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_a_decoder_and_its_cache_are_fine(bits: Any) -> None:
    config = decoder.Config(
        vocab_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    params = decoder.init(jax.random.key(0), config)
    params = params if bits is None else quantize.quantize_tree(params, {"_proj": bits, "embed": 8})
    assert export.lint(bench_export.signatures(params, config, prompt=4, slots=6)) == []


def test_all_findings_are_in_one_error(tmp_path: Path) -> None:
    def model(x: jax.Array) -> Any:
        best = lax.top_k(x, 2)[1]
        return best, jnp.sort(x), jnp.where(x > 0, x, -jnp.inf)

    signatures = {"f": (model, [spec(V)]), "g": (lambda x: lax.rem(x, jnp.float32(2)), [spec(V)])}
    with pytest.raises(ValueError, match="no TensorFlow Lite builtin for top_k, sort") as error:
        export.to_tflite(signatures, tmp_path / "m.tflite")
    said = str(error.value)
    assert f"{line_of(model, 'top_k')}: top_k in 'f'" in said
    assert said.count(__file__) == 4
    assert "allow=('infinity', 'rem')" in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_allowed_is_exported(tmp_path: Path) -> None:
    signatures = {"f": (lambda x: jnp.where(x > 0, x, -jnp.inf), [spec(V)])}
    with pytest.raises(ValueError, match="computes something else"):
        export.to_tflite(signatures, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match=r"allow: 'rem' is not among what differs: 'infinity'"):
        export.to_tflite(signatures, tmp_path / "m.tflite", allow=("infinity", "rem"))
    written = export.to_tflite(signatures, tmp_path / "m.tflite", allow=("infinity",))
    (actual,) = export.run_tflite(written.path, "f", V)
    assert np.array_equal(actual, np.where(V > 0, V, np.finfo(np.float32).min))
