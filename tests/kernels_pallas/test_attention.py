"""attention: every implementation against float64, its gradients and laws; what cuDNN is asked for, and what not."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels_pallas import attention
from kernels_pallas.add_norm import Config as NormConfig
from kernels_pallas.attention import cudnn
from kernels_pallas.attention.api import BLOCK, XLA_BLOCK, lists, sizes
from kernels_pallas.attention.config import default_config
from kernels_pallas.block_sparse_attention.lists import ordered
from kernels_pallas.block_sparse_attention.mosaic_gpu import Mosaic
from kernels_pallas.block_sparse_attention.reference import flat, rules_of
from kernels_pallas.block_sparse_attention.rules import Inputs, Rules

from .attention_truth import arguments, distance, truth
from .mosaic import lowered
from .test_block_sparse_attention import RULES, as_arrays

IMPLEMENTATIONS = ("reference", "xla")
TALL = XLA_BLOCK + 44  # two blocks, the second not full


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_float64(implementation: Any, name: str) -> None:
    q, k, v = arguments(e=5)
    out = jax.jit(partial(attention, implementation=implementation, logsumexp=True, **as_arrays(RULES[name])))(q, k, v)
    expected = truth(q, k, v, **RULES[name])
    np.testing.assert_allclose(out.y, expected[0], atol=2e-6)
    assert out.logsumexp is not None
    np.testing.assert_allclose(out.logsumexp, expected[1], atol=2e-6)


@pytest.mark.parametrize("rules", [{}, {"causal": True}, {"window": 50, "causal": True}, {"window": 70, "offset": 9}])
def test_over_several_blocks_values_and_gradients_are_those_of_the_reference(rules: dict[str, Any]) -> None:
    q, k, v = arguments(TALL, 2 * XLA_BLOCK + 7, heads=2, shared=1, batch=(2,))
    lengths = {"lengths": jnp.array([TALL, 40]), "key_lengths": jnp.array([400, 2 * XLA_BLOCK + 7])}

    def total(q: Any, k: Any, v: Any, implementation: Any) -> Any:
        out = attention(q, k, v, implementation=implementation, logsumexp=True, **rules, **lengths)
        assert out.logsumexp is not None
        return jnp.sum(jnp.sin(out.y)) + jnp.sum(jnp.sin(jnp.maximum(out.logsumexp, -9))), out

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, actual), slopes = run(q, k, v, "xla")
    (_, expected), expected_slopes = run(q, k, v, "reference")
    for a, e in zip((*actual, *slopes), (*expected, *expected_slopes), strict=True):
        assert distance(a, e) < 3e-6


def test_the_log_sum_exp_is_there_only_when_asked_for() -> None:
    q, k, v = arguments()
    assert attention(q, k, v).logsumexp is None
    asked = attention(q, k, v, logsumexp=True).logsumexp
    assert asked is not None
    assert asked.shape == q.shape[:-1]


def test_eager_jit_and_vmap_agree_and_so_do_eight_devices() -> None:
    q, k, v = arguments(20, batch=(8,))
    run = partial(attention, causal=True, softcap=3.0, implementation="xla")

    def loss(q: Any, k: Any, v: Any) -> jax.Array:
        return jnp.sum(jnp.sin(run(q, k, v).y))

    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = PartitionSpec("batch")
    split = jax.shard_map(
        lambda *a: jax.lax.psum(loss(*a), "batch"), mesh=mesh, in_specs=(batch,) * 3, out_specs=PartitionSpec()
    )
    expected = run(q, k, v).y
    np.testing.assert_allclose(jax.jit(run)(q, k, v).y, expected, atol=2e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda *a: run(*a).y))(q, k, v), expected, atol=2e-6)
    slopes = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
    for a, e in zip(jax.jit(jax.grad(split, (0, 1, 2)))(q, k, v), slopes, strict=True):
        np.testing.assert_allclose(a, e, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_as_near_as_the_reference(dtype: Any) -> None:
    q, k, v = arguments(64, d=32, dtype=dtype)
    expected = truth(q, k, v, causal=True)[0]
    near, plain = (
        distance(jax.jit(partial(attention, causal=True, implementation=way))(q, k, v).y, expected)
        for way in ("xla", "reference")
    )
    assert near <= max(1.5 * plain, 2e-3)


def test_memory_grows_with_the_length_forward_and_backward() -> None:
    def bytes_of(length: int, implementation: Any) -> int:
        shapes = [jax.ShapeDtypeStruct((length, 2, 16), jnp.float32)] * 3

        def loss(q: Any, k: Any, v: Any) -> jax.Array:
            return jnp.sum(attention(q, k, v, causal=True, implementation=implementation).y)

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of(4096, "reference") > 4096**2 * 2 * 4
    assert bytes_of(4096, "xla") < 4096**2 * 2 * 4 / 10
    assert bytes_of(8192, "xla") < 2.2 * bytes_of(4096, "xla")


def inputs(shape: tuple[int, int, int], dtype: Any = jnp.bfloat16, e: int | None = None, **rules: Any) -> Any:
    t, h, d = shape
    s = rules.pop("s", t)
    masks = {name: rules.pop(name, None) for name in ("segments", "key_segments", "lengths", "key_lengths", "sinks")}
    shapes = [jax.ShapeDtypeStruct((1, *x), dtype) for x in ((t, h, d), (s, h, d), (s, h, d if e is None else e))]
    none = jnp.full((1, 1, 1, 1), -1, jnp.int32)
    x = jax.eval_shape(lambda a, m: flat(*a, none, **m), shapes, masks)
    plain = {"causal": False, "window": None, "softcap": None, "scale": None, "offset": 0}
    return x, rules_of(d, **(plain | rules), block_q=BLOCK, block_k=BLOCK)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, None),
        ({"causal": True, "window": 100}, None),
        ({"dtype": jnp.float32}, "needs bfloat16 or float16, got float32"),
        ({"shape": (256, 2, 264)}, "needs heads of at most 256"),
        ({"e": 32}, "one size for k and v, got D=64 and E=32"),
        ({"softcap": 5.0}, "has no soft cap"),
        ({"sinks": jnp.zeros(2)}, "has no sinks"),
        ({"lengths": jnp.zeros(1, jnp.int32)}, "has no segments or lengths"),
        ({"window": 9}, "has a window only where attention is causal"),
        ({"causal": True, "s": 300}, "where T = S, got offset=0, T=256, S=300"),
        ({"causal": True, "offset": 4}, "got offset=4"),
    ],
)
def test_cudnn_is_asked_only_for_what_it_does(
    given: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, rules = inputs(given.pop("shape", (256, 2, 64)), **given)
    assert "needs a GPU, the backend is cpu" in str(cudnn.refused(x, rules, False))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = cudnn.refused(x, rules, False)
    assert found is None if reason is None else reason in str(found)
    assert cudnn.refused(x, rules, True) is not None


def test_on_a_gpu_auto_is_cudnn_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def stand_in(q: jax.Array, k: jax.Array, v: jax.Array, **given: Any) -> jax.Array:
        asked.append(given)
        return jnp.zeros_like(q)

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    q, k, v = arguments(64, dtype=jnp.bfloat16)
    out = attention(q, k, v, causal=True, window=8)
    assert out.y.shape == q.shape
    assert asked == [{"scale": 8**-0.5, "is_causal": True, "local_window_size": (7, 0), "implementation": "cudnn"}]
    for other in ({"softcap": 2.0}, {"sinks": jnp.zeros(4)}, {"logsumexp": True}, {"lengths": jnp.array(9)}):
        attention(q, k, v, **other)
        with pytest.raises(NotImplementedError, match="'cudnn' "):
            attention(q, k, v, implementation="cudnn", **other)
    assert len(asked) == 1


def kernel(x: Inputs, rules: Rules) -> Any:
    x = x._replace(blocks=lists(x, rules))
    brought = ordered(x.blocks, rules, x.q.shape[1], x.k.shape[1], x.segments, x.key_segments)
    return Mosaic(default_config(x, rules))(x, brought, rules)


@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("rules", [{"causal": True}, {"softcap": 30.0, "window": 1000}], ids=["causal", "capped"])
def test_the_kernel_of_dense_attention_lowers_to_cuda(d: int, rules: dict[str, Any]) -> None:
    x, fixed = inputs((2048, 4, d), **rules)
    assert default_config(x, fixed).check(x, fixed) is None
    assert "mosaic_gpu" in lowered(partial(kernel, rules=fixed), x)


def test_what_is_asked_for_is_never_replaced() -> None:
    q, k, v = arguments(64, d=64, dtype=jnp.bfloat16)
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    for name in ("mosaic_gpu", "cudnn"):
        with pytest.raises(NotImplementedError, match=f"'{name}' needs a .*GPU, the backend is cpu; use 'xla'"):
            attention(q, k, v, implementation=name)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="'triton' is not one of 'auto', 'xla', 'cudnn', 'mosaic_gpu'"):
        attention(q, k, v, implementation="triton")  # type: ignore[arg-type]


def test_shapes_of_other_work_are_other_rows_of_the_table() -> None:
    plain, capped = (sizes(*inputs((256, 2, 64), causal=True, softcap=cap)) for cap in (None, 9.0))
    assert plain["seen"] == 128
    assert plain != capped
    assert sizes(*inputs((256, 2, 64), window=10))["seen"] == 10


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_far_positions_and_wide_integers_do_not_wrap_around(implementation: Any) -> None:
    q, k, v = arguments(20, 20)
    plain = partial(attention, q, k, v, implementation=implementation)
    every = plain().y
    np.testing.assert_allclose(plain(window=2**63).y, every, atol=1e-6)
    np.testing.assert_allclose(plain(causal=True, offset=2**29 - 1).y, every, atol=1e-6)
    for unseen in ({"causal": True, "offset": 1 - 2**29}, {"window": 2, "offset": 99}):
        assert not plain(**unseen).y.any()  # type: ignore[arg-type]
        slope = jax.grad(lambda v, unseen=unseen: attention(q, k, v, implementation=implementation, **unseen).y.sum())
        assert not slope(v).any()
    np.testing.assert_allclose(plain(lengths=jnp.uint32(2**32 - 1)).y, every, atol=1e-6)
    np.testing.assert_allclose(plain(lengths=np.int64(2**40)).y, every, atol=1e-6)
    assert not plain(lengths=np.int64(-(2**32) + 5)).y.any()
    two = np.repeat([1, 2], 10)
    np.testing.assert_array_equal(plain(segments=two).y, plain(segments=jnp.asarray(two)).y)
    with pytest.raises(ValueError, match="offset: expected less than 536870912 either way, positions are int32"):
        plain(causal=True, offset=2**31 - 1)
    with pytest.raises(ValueError, match="segments: expected integers that fit int32, got 1 to 4294967297"):
        plain(segments=np.where(two == 2, 2**32 + 1, 1))
    with pytest.raises(TypeError, match="segments: expected integers that fit int32, got uint32; cast them"):
        plain(segments=jnp.full(20, 2**32 - 5, jnp.uint32))


def test_segments_of_64_bits_are_compared_as_such() -> None:
    q, k, v = arguments(20, 20)
    two = np.repeat([1, 2], 10)
    expected = attention(q, k, v, segments=jnp.asarray(two)).y
    with jax.enable_x64(True):
        segments = jnp.asarray(np.where(two == 2, 2**32 + 1, 1))
        for implementation in IMPLEMENTATIONS:
            out = attention(q, k, v, segments=segments, implementation=implementation).y
            np.testing.assert_allclose(out, expected, atol=1e-6)


def test_what_is_fixed_is_named_when_it_is_not() -> None:
    q, k, v = arguments(20, 20)
    for name, value, said in (
        ("causal", True, "True or False"),
        ("window", 3, "a whole number of Python"),
        ("scale", 1.0, "a number of Python"),
        ("logsumexp", True, "True or False"),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected {said}, which is fixed, got"):
            jax.jit(lambda x, name=name: attention(q, k, v, **{name: x}))(value)
    with pytest.raises(TypeError, match="causal: expected True or False, which is fixed, got 'no'"):
        attention(q, k, v, causal="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="q: expected an array, got list"):
        attention(q.tolist(), k, v)
    with pytest.raises(TypeError, match=r"config: expected a kernels_pallas\.block_sparse_attention\.Config, got"):
        attention(q, k, v, config=NormConfig())  # type: ignore[arg-type]
    np.testing.assert_array_equal(attention(q, k, v, scale=np.float32(0.5)).y, attention(q, k, v, scale=0.5).y)
