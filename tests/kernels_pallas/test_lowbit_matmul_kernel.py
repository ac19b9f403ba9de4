"""The Mosaic kernel of lowbit_matmul: its instructions by emulation, interpreted without a race, lowered to CUDA."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import lowbit_matmul
from kernels_pallas.lowbit_matmul._unpack import instructions, plain
from kernels_pallas.lowbit_matmul.config import Config, default_config
from kernels_pallas.lowbit_matmul.mosaic_gpu import forward
from kernels_pallas.lowbit_matmul.reference import reference, unpack

from .mosaic import interpreter, lowered


def arguments(m: int, n: int, k: int, bits: int, block: int | None = None) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    codes = jax.random.randint(keys[0], (n, k * bits // 8), 0, 256).astype(jnp.uint8)
    scales = jax.random.uniform(keys[1], (n,) if block is None else (n, k // block), minval=0.5)
    return jax.random.normal(keys[2], (m, k)).astype(jnp.bfloat16), codes, scales


def emulated(asm: str, words: np.ndarray) -> np.ndarray:
    """The instructions of a pair on 32-bit words, as `[..., 2]` float64; each result must be a bfloat16."""

    def halves(value: np.ndarray) -> np.ndarray:
        return value.astype("<u4")[..., None].view("<u2").view(jnp.bfloat16).astype(np.float64)

    held: dict[str, Any] = {"$1": words.astype(np.uint32)}

    def of(name: str) -> Any:
        return held[name] if name in held else np.full(words.shape, int(name, 0), np.uint32)

    for line in re.findall(r"^\s*(\w[^;{}]*);", asm, re.MULTILINE):
        op, _, rest = line.partition(" ")
        to, *given = (part.strip() for part in rest.split(","))
        if op == "shr.b32":
            held[to] = of(given[0]) >> int(given[1])
        elif op == "mov.b32":
            held[to] = of(given[0])
        elif op == "lop3.b32":
            a, b, c = map(of, given[:3])
            table = {0x6A: (a & b) ^ c, 0xEA: (a & b) | c}
            held[to] = table[int(given[3], 0)]
        elif op in ("fma.rn.bf16x2", "sub.bf16x2"):
            a, b, *c = (halves(of(name)) for name in given)
            exact = a * b + c[0] if c else a - b
            np.testing.assert_array_equal(exact, exact.astype(jnp.bfloat16).astype(np.float64))
            held[to] = exact
    return held["$0"]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_instructions_make_the_codes_of_every_word(bits: int) -> None:
    half = np.arange(65536, dtype=np.uint32)
    words = half | ((half * np.uint32(40503) + np.uint32(7)) & np.uint32(0xFFFF)) << np.uint32(16)
    expected = jax.jit(lambda c: plain(c, bits, 1)[0])(jnp.asarray(words.astype("<u4").view(np.uint8).reshape(1, -1)))
    for i in range(16 // bits):
        actual = emulated(instructions(bits, i), words)
        np.testing.assert_array_equal(actual.reshape(-1), np.asarray(expected[i], np.float64)[0])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_arrays_of_pairs_hold_every_code_once(bits: int) -> None:
    _, codes, _ = arguments(1, 3, 256, bits)
    pairs = 16 // bits
    for chunks in (1, 2):
        found = jax.jit(lambda c, chunks=chunks: jnp.asarray(plain(c, bits, chunks)))(codes)  # [chunks, pairs, 3, D]
        ordered = found.reshape(chunks, pairs, 3, -1, 2).transpose(2, 0, 3, 4, 1).reshape(3, 256)
        np.testing.assert_array_equal(np.asarray(ordered, np.int32), np.asarray(unpack(codes, bits, 256), np.int32))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("m", "n", "k", "bits", "block", "config"),
    [
        (3, 64, 384, 4, None, Config(warpgroups=1, depth=32, stages=2, splits=2)),
        (16, 136, 96, 8, None, Config(warpgroups=2, depth=32, stages=2)),
        (9, 64, 512, 2, None, Config(warpgroups=1, depth=64, stages=2)),
        (5, 64, 256, 4, 64, Config(warpgroups=1, depth=64, stages=2, splits=2)),
        (8, 64, 256, 4, 128, Config(warpgroups=1, depth=32, stages=2)),
    ],
)
def test_interpreted_it_is_the_reference_without_a_race(
    m: int, n: int, k: int, bits: int, block: int | None, config: Config
) -> None:
    x, codes, scales = arguments(m, n, k, bits, block)
    assert config.check(m, n, k, bits, block, x.dtype) is None
    run = jax.jit(lambda *a: forward(*a, bits=bits, block=block, config=config, interpret=interpreter()))
    actual = run(x, codes, scales)
    expected = jax.jit(lambda x, *a: reference(x, *a, bits, block))(x.astype(jnp.float32), codes, scales)
    assert actual.shape == (m, n)
    assert actual.dtype == jnp.bfloat16
    expected = np.asarray(expected, np.float64)
    assert np.linalg.norm(np.asarray(actual, np.float64) - expected) < 2e-3 * np.linalg.norm(expected)


SHAPES = [(1, 8192, 8192), (16, 8192, 8192), (32, 4096, 14336), (8, 152, 2304), (24, 28672, 4096)]


@pytest.mark.parametrize("block", [None, 128])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_the_config_of_a_shape_lowers_to_cuda(m: int, n: int, k: int, bits: int, block: int | None) -> None:
    lowers(m, n, k, bits, block, default_config(m, n, k, bits, block))


@pytest.mark.parametrize(
    ("bits", "block", "config"),
    [
        (4, None, Config(warpgroups=3, depth=64, stages=8, splits=4)),
        (2, 256, Config(warpgroups=4, depth=64, stages=3, splits=8)),
        (8, 32, Config(warpgroups=1, depth=128, stages=8)),
        (4, 8192, Config(warpgroups=2, depth=128, stages=6, splits=2)),
    ],
)
def test_what_the_tuner_tries_lowers_to_cuda(bits: int, block: int | None, config: Config) -> None:
    lowers(16, 8192, 8192, bits, block, config)


def lowers(m: int, n: int, k: int, bits: int, block: int | None, config: Config) -> None:
    assert config.check(m, n, k, bits, block, jnp.bfloat16) is None
    scales = (n,) if block is None else (n, k // block)
    shapes = [((m, k), jnp.bfloat16), ((n, k * bits // 8), jnp.uint8), (scales, jnp.float32)]
    text = lowered(
        lambda *a: forward(*a, bits=bits, block=block, config=config),
        *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes),
    )
    assert "mosaic_gpu" in text
    for dtype in ("bf16", "f32", "i8"):  # the weight is nowhere written out, but ui8 codes of 8 bits are as large
        assert f"{n}x{k}x{dtype}" not in text


@pytest.mark.parametrize(
    ("config", "shape", "dtype", "message"),
    [
        (Config(), (33, 128, 1024, 4, None), jnp.bfloat16, "a batch of 1 to 32, got 33"),
        (Config(), (1, 64, 1024, 4, None), jnp.bfloat16, "needs 128 outputs or more"),
        (Config(splits=2), (1, 128, 256, 4, None), jnp.bfloat16, "inputs in multiples of 512, got 256"),
        (Config(), (1, 128, 1024, 4, None), jnp.float32, "needs bfloat16, got float32"),
        (Config(), (1, 128, 1024, 4, 32), jnp.bfloat16, "a block of 64 inputs or more"),
        (Config(), (1, 128, 768, 4, 384), jnp.bfloat16, "a block of 64 inputs or more that divides 256"),
        (Config(stages=16), (1, 128, 8192, 4, None), jnp.bfloat16, "bytes of shared memory"),
        (Config(depth=48), (1, 128, 8192, 4, None), jnp.bfloat16, "depth is 32, 64 or 128"),
    ],
)
def test_a_config_says_why_it_cannot_run(config: Config, shape: Any, dtype: Any, message: str) -> None:
    assert message in str(config.check(*shape, dtype))


def test_a_program_for_every_multiprocessor_and_no_more() -> None:
    assert default_config(16, 8192, 8192, 4) == Config(warpgroups=4, depth=128, stages=4, splits=4)
    for n, k in ((8192, 8192), (4096, 4096), (14336, 4096), (1024, 4096)):
        config = default_config(16, n, k, 4)
        assert 60 <= -(-n // config.rows) * config.splits <= 132


def test_asked_for_without_a_gpu_it_says_so_and_is_not_replaced() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        lowbit_matmul(*arguments(1, 128, 256, 4), bits=4, implementation="mosaic_gpu")
