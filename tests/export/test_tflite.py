"""What was exported computes the same numbers; what cannot be exported is refused by name."""

import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import export, quantize, weights
from rlx.export._tflite_codes import pack_run
from rlx.models import decoder

BITS = (8, 4, 2)
SLOW = pytest.mark.slow  # a conversion takes about a second, so that most are left to the slow run


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def both(fn: Any, arguments: list[Any], arrays: list[Any], folder: Path) -> tuple[list[Any], list[Any], Any]:
    """Leaves of the result in LiteRT and in JAX, and the report."""
    report = export.to_tflite({"f": (fn, arguments)}, folder / "m.tflite")
    actual = export.run_tflite(report.path, "f", *arrays)
    return actual, jax.tree.leaves(fn(*jax.tree.map(jnp.asarray, arrays))), report


# Arithmetic


@pytest.mark.parametrize("bits", BITS)
def test_the_file_holds_the_codes_and_computes_what_rlx_computes(bits: Any, tmp_path: Path) -> None:
    q = quantize.quantize(normal(0, 64, 96), bits)
    x = np.asarray(normal(1, 3, 7, 96))
    (actual,), (expected,), report = both(lambda x: weights.matmul(x, q), [floats(3, 7, 96)], [x], tmp_path)
    assert report.quantized == {"quantized0_64x96": bits}
    content = report.path.read_bytes()
    assert content.count(np.asarray(q.codes).tobytes()) == 1
    assert content.count(np.asarray(q.scale).tobytes()) == 1
    assert report.bytes == len(content) < q.codes.nbytes + 64 * 12 + 2000  # 12: a scale and a zero point
    # Measured: equal to the last bit. One activation rounded the other way would move an output by 1e-3.
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@SLOW
@pytest.mark.parametrize("bits", BITS)
def test_activations_are_rounded_as_on_the_device_to_the_last_bit(bits: Any, tmp_path: Path) -> None:
    """A diagonal weight shows the rounded activations themselves; grids of pixels and of 1/16 are full of ties."""
    rng = np.random.default_rng(0)
    rows = [
        rng.standard_normal((300, 64)),
        rng.integers(0, 256, (300, 64)) / 255,
        np.round(rng.standard_normal((300, 64)) * 16) / 16,
        -rng.uniform(0, 1, (99, 64)),
        np.zeros((1, 64)),
    ]
    x = np.concatenate(rows).astype(np.float32)
    q = quantize.quantize(jnp.eye(64), bits)
    (actual,), (expected,), _ = both(lambda x: weights.matmul(x, q), [floats(1000, 64)], [x], tmp_path)
    assert np.array_equal(actual, expected)


@SLOW
@pytest.mark.parametrize(("out", "inputs"), [(5, 7), (1, 9), (3, 1)])
def test_sizes_that_do_not_fill_bytes(out: int, inputs: int, tmp_path: Path) -> None:
    q = {bits: quantize.quantize(normal(0, out, inputs), bits) for bits in BITS}

    def run(x: jax.Array) -> list[jax.Array]:
        return [weights.matmul(x, q[bits]) for bits in BITS]

    actual, expected, _ = both(run, [floats(4, inputs)], [np.asarray(normal(1, 4, inputs))], tmp_path)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)


@SLOW
@pytest.mark.parametrize("bits", [8, 4])
def test_weights_with_float_activations(bits: Any, tmp_path: Path) -> None:
    q = quantize.quantize(normal(0, 16, 24), bits, activations="float")
    (actual,), (expected,), report = both(
        lambda x: weights.matmul(x, q), [floats(3, 24)], [np.asarray(normal(1, 3, 24))], tmp_path
    )
    assert report.quantized == {"quantized0_16x24": bits}
    assert np.asarray(q.codes).tobytes() in report.path.read_bytes()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, *(pytest.param(bits, marks=SLOW) for bits in (4, 8))])
def test_a_tied_embedding_is_stored_once_and_an_id_outside_is_nan(bits: Any, tmp_path: Path) -> None:
    q = quantize.quantize(normal(0, 40, 512), bits)
    ids = np.array([[0, 3, 39], [7, -1, 40]], np.int32)

    def logits(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = weights.take(q, ids)
        return rows, weights.matmul(jnp.tanh(rows[:1]), q)

    (rows, y), expected, report = both(logits, [jax.ShapeDtypeStruct((2, 3), jnp.int32)], [ids], tmp_path)
    assert report.path.read_bytes().count(np.asarray(q.codes).tobytes()) == 1
    assert np.array_equal(rows, expected[0], equal_nan=True)
    assert np.isnan(rows[1, 1:]).all()
    np.testing.assert_allclose(y, expected[1], rtol=1e-5, atol=1e-4)


@SLOW
def test_codes_survive_what_a_converter_folds_and_float_weights_of_the_same_value_stay_float(tmp_path: Path) -> None:
    q = quantize.quantize(normal(0, 16, 24), 4)
    gain = jnp.arange(1.0, 17.0)[None]

    def run(x: jax.Array) -> list[jax.Array]:
        scaled = weights.matmul(x, q) * gain  # folded into a float weight, were there one
        biased = jax.nn.relu(weights.matmul(x + 1, q) + gain)
        return [scaled, biased, weights.matmul(x, weights.dense(q)), jax.vmap(lambda x: weights.matmul(x, q))(x)]

    actual, expected, report = both(run, [floats(3, 24)], [np.asarray(normal(1, 3, 24))], tmp_path)
    assert report.quantized == {"quantized0_16x24": 4}
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
    assert np.abs(actual[2] - actual[3]).max() > 1e-3  # rounded activations, and those that are not


def test_what_jax_has_traced_before_and_traces_after_is_not_touched(tmp_path: Path) -> None:
    """Functions that jax caches, of the same weight: traced before the export, in it, and after it."""
    q = {name: quantize.quantize(normal(i, 8, 8), 8) for i, name in enumerate(("jit", "remat", "scan", "vjp", "whole"))}
    inner = jax.jit(lambda x: weights.matmul(x, q["jit"]))
    saved = jax.checkpoint(lambda x: weights.matmul(x, q["remat"]))  # type: ignore
    custom = jax.custom_vjp(lambda x: weights.matmul(x, q["vjp"]))
    custom.defvjp(lambda x: (weights.matmul(x, q["vjp"]), x), lambda x, g: (g,))

    def body(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return x, weights.dense(q["scan"])[0]

    def run(x: jax.Array) -> list[jax.Array]:
        looked = jax.lax.scan(body, x, None, length=2)[1]
        return [inner(x), saved(x), custom(x), looked, weights.matmul(x, q["whole"])]

    x = normal(9, 2, 8)
    expected = [weights.matmul(x, q[name]) for name in ("jit", "remat", "vjp")]
    expected += [jnp.broadcast_to(q["scan"].dense()[0], (2, 8)), weights.matmul(x, q["whole"])]
    for order in ("export first", "jit first"):
        jax.clear_caches()
        if order == "jit first":
            jax.jit(run)(x)
        report = export.to_tflite({"f": (run, [floats(2, 8)])}, tmp_path / "m.tflite")
        assert list(report.quantized.values()) == [8] * 4
        for results in (export.run_tflite(report.path, "f", x), run(x), jax.jit(run)(x)):
            for a, e in zip(results, expected, strict=True):
                np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)


# Models


def mlp(layers: list[tuple[Any, jax.Array]], x: jax.Array) -> jax.Array:
    for w, bias in layers[:-1]:
        x = jax.nn.gelu(weights.matmul(x, w) + bias)
    return weights.matmul(x, layers[-1][0]) + layers[-1][1]


@SLOW
def test_an_mlp_in_float_and_in_every_width(tmp_path: Path) -> None:
    sizes = [24, 48, 48, 10]
    plain = [(normal(i, o, n) / np.sqrt(n), normal(9 + i, 1, o)) for i, (n, o) in enumerate(itertools.pairwise(sizes))]
    x = np.asarray(normal(1, 5, 24))
    written = {}
    for bits in (32, *BITS):
        layers: Any = plain if bits == 32 else [(quantize.quantize(w, bits), bias) for w, bias in plain]  # type: ignore
        (actual,), (expected,), report = both(lambda x, l=layers: mlp(l, x), [floats(5, 24)], [x], tmp_path)
        written[bits] = report.bytes
        assert list(report.quantized.values()) == ([] if bits == 32 else [bits] * 3)
        np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    assert written[2] < written[4] < written[8] < written[32]


V, D, HEADS, T = 17, 32, 2, 8


def attention_params() -> dict[str, Any]:
    shapes = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "up": (2 * D, D), "down": (D, 2 * D)}
    layers = [
        {
            name: np.asarray(normal(10 * i + j, *shape) / np.sqrt(shape[1]))
            for j, (name, shape) in enumerate(shapes.items())
        }
        for i in range(2)
    ]
    return {"embed": np.asarray(normal(99, V, D)), "layers": layers}


def attend(p: Any, x: jax.Array, keys: jax.Array, values: jax.Array, allowed: jax.Array) -> jax.Array:
    """x [B, T, D], keys and values [B, S, H, D / H], allowed [T, S]."""
    q = weights.matmul(x, p["q"]).reshape(*x.shape[:2], HEADS, -1)
    scores = jnp.einsum("bthd,bshd->bhts", q, keys) / np.sqrt(D / HEADS)
    scores = jnp.where(allowed[None, None], scores, -1e9)
    mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), values)
    x = x + weights.matmul(mixed.reshape(x.shape), p["o"])
    return x + weights.matmul(jax.nn.silu(weights.matmul(x, p["up"])), p["down"])


def split(p: Any, name: str, x: jax.Array) -> jax.Array:
    return weights.matmul(x, p[name]).reshape(*x.shape[:2], HEADS, -1)


def all_logits(params: Any, ids: jax.Array) -> jax.Array:
    x = weights.take(params["embed"], ids)
    causal = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
    for p in params["layers"]:
        x = attend(p, x, split(p, "k", x), split(p, "v", x), causal)
    return weights.matmul(x, params["embed"])


def step(params: Any, token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    """One token [B, 1] at a position []; the cache is written by dynamic_update_slice."""
    x = weights.take(params["embed"], token)
    allowed = (jnp.arange(T) <= position)[None]
    new = []
    for p, one in zip(params["layers"], cache, strict=True):
        start = (0, position, 0, 0)
        k = jax.lax.dynamic_update_slice(one["k"], split(p, "k", x), start)
        v = jax.lax.dynamic_update_slice(one["v"], split(p, "v", x), start)
        new.append({"k": k, "v": v})
        x = attend(p, x, k, v, allowed)
    return weights.matmul(x, params["embed"]), new


@pytest.mark.parametrize("bits", [32, 8, *(pytest.param(bits, marks=SLOW) for bits in (4, 2))])
def test_an_attention_decoder_whole_and_token_by_token(bits: Any, tmp_path: Path) -> None:
    params = attention_params()
    if bits != 32:
        params = jax.tree.map(np.asarray, quantize.quantize_tree(params, {"layers": bits, "embed": 8}))
    one = floats(1, T, HEADS, D // HEADS)
    cache = [{"k": one, "v": one}, {"k": one, "v": one}]
    token, whole = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (1, T))
    signatures = {
        "all": (lambda ids: all_logits(params, ids), [whole]),
        "step": (lambda *a: step(params, *a), [token, jax.ShapeDtypeStruct((), jnp.int32), cache]),
    }
    report = export.to_tflite(signatures, tmp_path / "m.tflite")
    assert sorted(report.quantized.values()) == ([] if bits == 32 else sorted([bits] * 12 + [8]))  # once a weight
    model = export.load_tflite(report.path)
    ids = np.asarray(jax.random.randint(jax.random.key(1), (1, T), 0, V), np.int32)
    expected = np.asarray(all_logits(params, jnp.asarray(ids)))
    (actual,) = model("all", ids)
    # A difference of 1e-7 before a product may move an activation to the next of its 255 codes.
    limit = (1e-5 if bits == 32 else 2e-2) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=limit)
    assert np.median(np.abs(actual - expected)) <= 1e-5 * np.abs(expected).max()
    state = [np.zeros(one.shape, np.float32)] * 4
    for position in range(T):
        logits, *state = model("step", ids[:, position : position + 1], np.int32(position), state)
        np.testing.assert_allclose(logits[0, 0], expected[0, position], atol=limit)
        assert logits.argmax() == expected[0, position].argmax()


@SLOW
def test_the_decoder_in_float_and_in_eight_bits(tmp_path: Path) -> None:
    config = decoder.Config(
        vocab_size=19, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    params = decoder.init(jax.random.key(0), config)
    params["model"]["embed_tokens"]["weight"] *= 30
    ids = np.asarray(jax.random.randint(jax.random.key(1), (1, 12), 0, 19), np.int32)
    small = quantize.quantize_tree(params, {"_proj": 8})
    for tree, limit in ((params, 1e-5), (small, 5e-3)):  # a code of an activation may flip inside
        concrete = jax.tree.map(np.asarray, tree)
        (actual,), (expected,), report = both(
            lambda ids, p=concrete: decoder.apply(p, config, ids, unroll=True),
            [jax.ShapeDtypeStruct((1, 12), jnp.int32)],
            [ids],
            tmp_path,
        )
        assert np.abs(actual - expected).max() <= limit * np.abs(expected).max()
        assert np.array_equal(actual.argmax(-1), np.asarray(expected).argmax(-1))
    assert list(report.quantized.values()) == [8] * 14


# The file


def test_several_signatures_in_one_file(tmp_path: Path) -> None:
    shared, own = quantize.quantize(normal(0, 64, 96), 8), quantize.quantize(normal(1, 8, 4), 2)
    signatures = {
        "first": (lambda x: weights.matmul(x, shared), [floats(2, 96)]),
        "second": (
            lambda x, y: {"sum": weights.matmul(x, shared), "less": weights.matmul(y, own), "again": y},
            [floats(1, 96), floats(2, 4)],
        ),
        "unused": (lambda x, y: (y + 1, y + 1, jnp.arange(3)), [floats(2), floats(3)]),
    }
    report = export.to_tflite(signatures, tmp_path / "m.tflite")
    assert report.bytes == report.path.stat().st_size
    assert report.path.read_bytes().count(np.asarray(shared.codes).tobytes()) == 1
    assert report.quantized == {"quantized0_64x96": 8, "quantized1_8x4": 2}
    assert report.inputs["second"] == [((1, 96), "float32"), ((2, 4), "float32")]
    assert report.outputs["unused"] == [((3,), "float32"), ((3,), "float32"), ((3,), "int32")]
    model = export.load_tflite(report.path)
    assert set(model.signatures) == {"first", "second", "unused"}
    x, y = np.asarray(normal(2, 2, 96)), np.asarray(normal(3, 2, 4))
    np.testing.assert_allclose(model("first", x)[0], weights.matmul(x, shared), rtol=1e-6, atol=1e-5)
    again, less, total = model("second", x[:1], y)  # leaves in the order of the tree: by key
    assert np.array_equal(again, y)
    np.testing.assert_allclose(less, weights.matmul(y, own), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(total, weights.matmul(x[:1], shared), rtol=1e-6, atol=1e-5)
    with pytest.raises(ValueError, match="'third' is not one of"):
        model("third")
    with pytest.raises(ValueError, match="takes 1, got 2"):
        model("first", x, x)
    with pytest.raises(ValueError, match=r"argument 0 of 'first' is float32\(2, 96\), got float64\(2, 96\)"):
        model("first", x.astype(np.float64))
    with pytest.raises(ValueError, match=r"argument 1 of 'second' is float32\(2, 4\), got float32\(1, 4\)"):
        model("second", x[:1], y[:1])


@SLOW
def test_more_than_ten_arguments_and_results_keep_their_order(tmp_path: Path) -> None:
    arrays = [np.full(2, i, np.float32) for i in range(12)]
    actual, expected, _ = both(lambda *a: [2 * v for v in reversed(a)], [floats(2)] * 12, arrays, tmp_path)
    assert np.array_equal(actual, np.asarray(expected))


@SLOW
def test_operations_say_what_they_compute_and_constants_lie_at_multiples_of_sixteen(tmp_path: Path) -> None:
    """The delegate of this machine reads neither flag, version nor alignment; other interpreters do.

    The schema asks for `force_align: 16`; version 12 of FULLY_CONNECTED has float activations and a scale an output.
    """
    from ai_edge_litert import schema_py_generated as schema

    q = [quantize.quantize(normal(i, 5, 7 + i), bits) for i, bits in enumerate(BITS)]
    signatures = {
        "f": (
            lambda *x: [weights.matmul(a, w) for a, w in zip(x, q, strict=True)],
            [floats(2, 7 + i) for i in range(3)],
        )
    }
    content = export.to_tflite(signatures, tmp_path / "m.tflite").path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    packed = {pack_run(np.asarray(w.integers()), w.bits) for w in q}
    found = set()
    for i in range(model.BuffersLength()):
        data = model.Buffers(i).DataAsNumpy()
        if not isinstance(data, int):
            found.add(data.tobytes())
            assert (data.ctypes.data - np.frombuffer(content, np.uint8).ctypes.data) % 16 == 0
    assert packed <= found
    graph = model.Subgraphs(0)
    types = {graph.Tensors(graph.Operators(i).Inputs(1)).Type() for i in range(graph.OperatorsLength())}
    assert types == {schema.TensorType.INT8, schema.TensorType.INT4, schema.TensorType.INT2}
    assert [code.version for code in schema.ModelT.InitFromObj(model).operatorCodes] == [12]
    for operation in schema.ModelT.InitFromObj(model).subgraphs[0].operators:
        assert operation.builtinOptions.asymmetricQuantizeInputs


# Refusals


@pytest.mark.parametrize(
    ("fn", "operation"),
    [
        (lambda x: jax.lax.top_k(x, 2), "top_k"),
        (jnp.sort, "sort"),
        (lambda x: x.astype(jnp.int32) << 2, "shift_left"),
        (lambda x: jnp.linalg.cholesky(jnp.diag(x)), "(potrf|cholesky)"),
    ],
)
def test_an_operation_without_a_builtin_is_named(fn: Any, operation: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no TensorFlow Lite builtin for .*{operation}"):
        export.to_tflite({"f": (fn, [floats(8)])}, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_only_the_interpreter_refuses_is_named(tmp_path: Path) -> None:
    def scattered(x: jax.Array) -> jax.Array:
        return x.at[jnp.array([0, 2])].apply(jnp.sin)

    with pytest.raises(ValueError, match="LiteRT cannot run STABLEHLO_SCATTER"):
        export.to_tflite({"f": (scattered, [floats(3)])}, tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="sort"):
        export.to_tflite({"f": (jnp.sort, [floats(8)])}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_quantised_weights_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    def refused(fn: Any, error: type, message: str) -> None:
        with pytest.raises(error, match=message):
            export.to_tflite({"f": (fn, [floats(1, 8)])}, tmp_path / "m.tflite")

    stacked = quantize.quantize(jnp.ones((2, 8, 8)), 8)
    one = quantize.quantize(jnp.ones((8, 8)), 8)
    blocks = quantize.quantize(jnp.ones((8, 8)), 4, block=4)
    narrow = quantize.quantize(jnp.ones((8, 8)), 2, activations="float")
    scanned = lambda x: jax.lax.scan(lambda x, w: (weights.matmul(x, w), None), x, stacked)[0]  # noqa: E731
    looped = lambda x: jax.lax.fori_loop(0, 3, lambda _, x: weights.matmul(x, one), x)  # noqa: E731
    refused(scanned, TypeError, r"inside a scan.*Unroll the layers.*NumPy")
    refused(looped, ValueError, r"a quantised weight \[8, 8\] is used by WHILE.*inside a loop; unroll it")
    refused(lambda x: weights.matmul(x, blocks), NotImplementedError, "block=None")
    refused(lambda x: weights.matmul(x, narrow), NotImplementedError, "dynamic_int8")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_name_the_argument(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    with pytest.raises(ValueError, match="signatures: at least one"):
        export.to_tflite({}, path)
    with pytest.raises(ValueError, match="'a b' is not an identifier"):
        export.to_tflite({"a b": (lambda x: x, [floats(2)])}, path)
    with pytest.raises(ValueError, match="signatures: 'f' returns no array"):
        export.to_tflite({"f": (lambda x: (), [floats(2)])}, path)
    with pytest.raises(TypeError, match="argument 1 of 'f' is bfloat16; TensorFlow Lite takes float32"):
        export.to_tflite({"f": (lambda x, y: x, [floats(2), jax.ShapeDtypeStruct((2,), jnp.bfloat16)])}, path)
    with pytest.raises(FileNotFoundError, match="path: there is no folder"):
        export.to_tflite({"f": (lambda x: x, [floats(2)])}, tmp_path / "gone" / "m.tflite")
    path.write_bytes(b"not a model, surely")
    with pytest.raises(ValueError, match=r"m\.tflite is not a TensorFlow Lite file"):
        export.load_tflite(path)


@pytest.mark.parametrize(
    ("signatures", "error", "message"),
    [
        (None, TypeError, "signatures: expected"),
        ([("f", (jnp.sin, [floats(2)]))], TypeError, "signatures: expected .*got list"),
        ({3: (jnp.sin, [floats(2)])}, TypeError, "signatures: names are strings, got 3"),
        ({"f": jnp.sin}, TypeError, "signatures: 'f' is not"),
        ({"f": ("sin", [floats(2)])}, TypeError, "signatures: 'f' is not"),
        ({"f": (jnp.sin, floats(2))}, TypeError, "the arguments of 'f' are a list"),
        ({"f": (jnp.sin, None)}, TypeError, "the arguments of 'f' are a list"),
        ({"f": (jnp.sin, [1.0])}, TypeError, "argument 0 of 'f' is not a ShapeDtypeStruct, got 1.0"),
        ({"f": (jnp.sin, [(2, 3)])}, TypeError, "argument 0 of 'f' is not a ShapeDtypeStruct, got 2"),
        ({"f": (jnp.sin, [floats(-1)])}, ValueError, "argument 0 of 'f' has shape .*static"),
        ({"f": (jnp.sin, [floats(*jax.export.symbolic_shape("b"))])}, ValueError, "has shape .*static"),
    ],
)
def test_signatures_that_are_none_are_named(signatures: Any, error: type, message: str, tmp_path: Path) -> None:
    for call in (export.lint, lambda given: export.to_tflite(given, tmp_path / "m.tflite")):
        with pytest.raises(error, match=message):
            call(signatures)


def test_policies_that_are_of_another_type_are_named(tmp_path: Path) -> None:
    signatures = {"f": (jnp.sin, [floats(2)])}
    with pytest.raises(TypeError, match="allow: expected names"):
        export.to_tflite(signatures, tmp_path / "m.tflite", allow="rem")
    with pytest.raises(TypeError, match="metadata: expected values by name, got list"):
        export.to_tflite(signatures, tmp_path / "m.tflite", metadata=["a"])
    with pytest.raises(ValueError, match="threads: 0 is outside"):
        export.TFLite(b"\0\0\0\0TFL3", threads=0)
