"""The Mosaic kernel of block_sparse_attention: interpreted it has the reference's values and no race; it lowers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import block_sparse_attention, causal_blocks, join_blocks, window_blocks
from kernels_pallas.block_sparse_attention.bench import back_configs, configs
from kernels_pallas.block_sparse_attention.config import Config, default_config, recorded
from kernels_pallas.block_sparse_attention.lists import ordered
from kernels_pallas.block_sparse_attention.mosaic_gpu import Mosaic
from kernels_pallas.block_sparse_attention.reference import check_blocks, flat, reference, rules_of
from kernels_pallas.block_sparse_attention.rules import Inputs, Rules
from kernels_pallas.block_sparse_attention.xla import blocked

from .attention_truth import arguments, distance, some_blocks
from .mosaic import interpreter, lowered

PLAIN: dict[str, Any] = {"causal": False, "window": None, "softcap": None, "scale": None, "offset": 0}


def inputs(q: Any, k: Any, v: Any, blocks: Any, **other: Any) -> tuple[Inputs, Rules]:
    """As the public function brings them to one form."""
    masks = {name: other.pop(name, None) for name in ("segments", "key_segments", "lengths", "key_lengths", "sinks")}
    rules = rules_of(q.shape[-1], **(PLAIN | other))
    return flat(q, k, v, check_blocks(blocks, q, k, rules), **masks), rules


def run(x: Inputs, rules: Rules, config: Config, interpret: Any = None) -> Any:
    """The kernel's values."""
    lists = ordered(x.blocks, rules, x.q.shape[1], x.k.shape[1], x.segments, x.key_segments)
    return Mosaic(config, interpret)(x, lists, rules)


CASES: dict[str, tuple[dict[str, Any], Any, dict[str, Any], Config]] = {
    "lists of every head, two steps a block": (
        {"length": 128, "keys": 300, "heads": 2, "shared": 1},
        some_blocks(2, 1, 2, 3),
        {"block_q": 128, "block_k": 128},
        Config(columns=64, groups=2, stages=2),
    ),
    "two heads share a list, two blocks a step, an odd end": (
        {"length": 100, "keys": 150, "heads": 2, "shared": 1},
        some_blocks(1, 2, 5, 5),
        {"block_q": 64, "block_k": 32, "causal": True, "softcap": 2.0, "offset": 40},
        Config(columns=64, groups=2, stages=2),
    ),
    "packed heads, one warpgroup, segments, sinks": (
        {"length": 24, "keys": 128, "heads": 3, "shared": 1},
        some_blocks(1, 3, 6, 8),
        {
            "block_q": 8,
            "block_k": 16,
            "window": 60,
            "sinks": jnp.linspace(-1, 1, 3),
            "segments": jnp.repeat(jnp.array([0, 1, -1]), 8),
            "key_segments": jnp.repeat(jnp.array([0, 1]), 64),
        },
        Config(columns=64, groups=1, stages=1),
    ),
    "padding": (
        {"length": 128, "keys": 128, "heads": 1, "shared": 1, "batch": (2,)},
        causal_blocks(128, 128, block_q=128, block_k=64),
        {"block_q": 128, "block_k": 64, "causal": True, "lengths": jnp.array([128, 40])},
        Config(columns=64, groups=2, stages=3),
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", CASES)
def test_interpreted_it_is_the_reference_without_a_race(name: str) -> None:
    sizes, blocks, rules, config = CASES[name]
    q, k, v = arguments(**sizes, d=64, dtype=jnp.bfloat16)
    x, fixed = inputs(2 * q, k, v, blocks, **rules)
    assert config.check(x, fixed) is None
    actual = jax.jit(partial(run, rules=fixed, config=config, interpret=interpreter()))(x)
    wide = x._replace(q=x.q.astype(jnp.float32), k=x.k.astype(jnp.float32), v=x.v.astype(jnp.float32))
    exact, plain = jax.jit(reference, static_argnums=1)(wide, fixed), jax.jit(reference, static_argnums=1)(x, fixed)
    real = True if x.segments is None else np.asarray(x.segments >= 0)[..., None]
    assert distance(actual.y, exact.y) <= max(1.5 * distance(plain.y, exact.y), 2e-3)
    assert distance(np.where(real, actual.logsumexp, -np.inf), exact.logsumexp) < 1e-5


@pytest.mark.timeout(120)
def test_interpreted_it_holds_far_below_zero() -> None:
    q, k, v = arguments(64, heads=1, shared=1, d=64, dtype=jnp.bfloat16)
    x, rules = inputs(5 * jnp.abs(q), -5 * jnp.abs(k), v, [[[0, 1]]], block_q=64, block_k=32, causal=True)
    config = Config(columns=64, groups=1, stages=2)
    actual = jax.jit(partial(run, rules=rules, config=config, interpret=interpreter()))(x)
    wide = x._replace(q=x.q.astype(jnp.float32), k=x.k.astype(jnp.float32), v=x.v.astype(jnp.float32))
    exact = jax.jit(reference, static_argnums=1)(wide, rules)
    assert float(exact.logsumexp.min()) < -120
    assert distance(actual.y, exact.y) < 4e-3
    assert distance(actual.logsumexp, exact.logsumexp) < 1e-6


def shaped(
    t: int, h: int, k: int, d: int, e: int, blocks: Any, masked: bool = False, dtype: Any = jnp.bfloat16, **rules: Any
) -> tuple[Inputs, Rules]:
    """Shapes alone."""
    shapes = [jax.ShapeDtypeStruct((1, t, n, size), dtype) for n, size in ((h, d), (k, d), (k, e))]
    extra = {"sinks": jax.ShapeDtypeStruct((h,), jnp.float32), "lengths": jax.ShapeDtypeStruct((1,), jnp.int32)}
    extra = extra if masked else {}
    x = jax.eval_shape(lambda a, b: inputs(*a, blocks, **rules, **b)[0], shapes, extra)
    return x, rules_of(d, **(PLAIN | rules))


SPARSE = join_blocks(window_blocks(4096, 4096, block_q=64, block_k=64, window=512), np.zeros((1, 64, 16), np.int32))
SHAPES: dict[str, tuple[Inputs, Rules]] = {
    "sparse": shaped(4096, 32, 4, 128, 128, SPARSE, block_q=64, block_k=64, causal=True, window=512),
    "one head a list": shaped(4096, 2, 2, 128, 128, SPARSE, block_q=64, block_k=64),
    "everything": shaped(
        *(4096, 8, 2, 64, 64, SPARSE, True), block_q=64, block_k=64, causal=True, window=512, softcap=30.0
    ),
    "a list a query": shaped(64, 16, 1, 128, 128, [[[0, 3]] * 64], block_q=1, block_k=16, causal=True),
    "wide heads": shaped(512, 2, 1, 256, 256, [[[0, 1, 2, 3]] * 4], block_q=128, block_k=128, dtype=jnp.float16),
    "heads of two sizes": shaped(500, 2, 1, 192, 128, [[[0, 1, 2, 3]] * 4], block_q=128, block_k=128, causal=True),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_config_of_a_shape_lowers_to_cuda_forward_and_backward(name: str) -> None:
    x, rules = SHAPES[name]
    config = default_config(x, rules)
    assert config.check(x, rules) is None
    backward = name in ("sparse", "one head a list", "everything")
    assert Mosaic(config).has_backward == backward
    assert lowered_with_gradient(name, config).count("@mosaic_gpu") == 1 + 2 * backward


def lowered_with_gradient(name: str, config: Config) -> str:
    """The program for CUDA of values and gradients."""
    x, rules = SHAPES[name]

    def slopes(q: Any, k: Any, v: Any, to_y: Any) -> Any:
        whole = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), x._replace(q=None, k=None, v=None))
        y, pull = jax.vjp(lambda q, k, v: blocked(whole._replace(q=q, k=k, v=v), rules, Mosaic(config)).y, q, k, v)
        return y, pull(to_y)

    return lowered(slopes, x.q, x.k, x.v, jax.ShapeDtypeStruct((*x.q.shape[:3], x.v.shape[3]), x.q.dtype))


def test_what_the_tuner_tries_lowers_to_cuda() -> None:
    x, rules = SHAPES["sparse"]
    found = list(configs(x, rules))
    assert len(found) > 5
    for config in found[::4]:
        assert "mosaic_gpu" in lowered(partial(run, rules=rules, config=config), x)


@pytest.mark.parametrize(
    "config", [config for config in back_configs(*SHAPES["sparse"]) if config.back_groups], ids=str
)
def test_what_the_tuner_tries_backward_lowers_to_cuda(config: Config) -> None:
    assert lowered_with_gradient("sparse", config).count("@mosaic_gpu") == 3


def test_a_recorded_config_has_each_pass_from_its_own_row() -> None:
    plain = Config(columns=64, back_groups=1)
    assert recorded({}, plain) == plain
    rows = {"forward": vars(Config(stages=3)), "both": vars(Config(columns=64, back_groups=2, back_stages=4))}
    assert recorded(rows, plain) == Config(stages=3, back_groups=2, back_stages=4)
    assert recorded({"forward": rows["forward"]}, plain) == Config(stages=3, back_groups=1)
    assert recorded({"both": rows["both"]}, plain) == Config(columns=64, back_groups=2, back_stages=4)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (Config(columns=32), {}, "columns are a multiple of 64"),
        (Config(groups=3), {}, "groups at most 2"),
        (Config(), {"block_k": 48}, "needs columns that divide a block of keys"),
        (Config(stages=9), {}, "bytes of shared memory"),
        (Config(columns=256), {}, "needs 256 registers of a thread, there are 216"),
        (Config(), {"dtype": jnp.float32}, "bfloat16 or float16, got float32"),
        (Config(), {"d": 80}, "heads of 64, 128, 192 or 256, got D=80 and E=128"),
        (Config(), {"block_k": 4}, "blocks of keys in multiples of 8, got 4"),
        (Config(columns=192), {"e": 256}, "needs 272 registers of a thread, there are 216"),
        (Config(groups=2), {"k": 32}, "needs 128 rows of a list, or a multiple, got 64"),
    ],
)
def test_a_config_says_why_it_cannot_run(config: Config, change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"t": 512, "h": 32, "k": 4, "d": 128, "e": 128, "block_q": 64, "block_k": 64}
    x, rules = shaped(**(given | change), blocks=[[[0]] * 8])
    assert message in str(config.check(x, rules))


def test_asked_for_without_a_gpu_it_says_so_and_is_not_replaced() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    q, k, v = arguments(64, d=64, dtype=jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        block_sparse_attention(q, k, v, [[[0]]], block_q=64, block_k=64, implementation="mosaic_gpu")
