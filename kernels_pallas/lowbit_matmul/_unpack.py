"""Codes in registers to bfloat16 numbers in registers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect


def unpacked(dialect: Dialect, ref: Any, bits: int, chunks: int) -> list[list[jax.Array]]:
    """Codes `[64, D]` in shared memory as numbers, by chunks of columns: for each, 16 / bits arrays of pairs.

    Array i of a chunk is `[64, D / chunks / 2]`: its columns 2 q and 2 q + 1 are code i of the first and of the second
    half of word q (four bytes) of the chunk.
    """
    if dialect.transposed:
        return plain(ref[...], bits, chunks)
    # A thread holds four neighbouring bytes of a row here, and there the pair of neighbours that has their place.
    held, wanted = plgpu.Layout.WGMMA_8BIT, plgpu.Layout.WGMMA
    out = plgpu.ShapeDtypeStruct((64, ref.shape[1] // chunks // 2), jnp.bfloat16, layout=wanted)
    shapes = [[out] * (16 // bits) for _ in range(chunks)]
    convert = plgpu.inline_mgpu(arg_types=(held,), return_type=shapes)
    return convert(lambda _, codes: _convert(codes, bits, chunks))(dialect.load(ref, held))


def plain(codes: jax.Array, bits: int, chunks: int) -> list[list[jax.Array]]:
    """What `unpacked` gives, of an array."""
    half = codes.reshape(len(codes), chunks, -1, 2).astype(jnp.int32)
    half = half[..., 0] + half[..., 1] * 256
    sign = 2 ** (bits - 1)
    fields = [((half >> (i * bits)) & (2 * sign - 1)) ^ sign for i in range(16 // bits)]
    numbers = [(field - sign).astype(jnp.bfloat16) for field in fields]
    return [[number[:, chunk] for number in numbers] for chunk in range(chunks)]


def _convert(codes: Any, bits: int, chunks: int) -> Any:
    """The instructions, for each register of codes."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import llvm

    i32, pair = ir.IntegerType.get_signless(32), ir.VectorType.get((2,), ir.BF16Type.get())

    def number(word: Any, asm: str) -> Any:
        made: Any = llvm.inline_asm(i32, [llvm.bitcast(i32, word)], asm, "=r,r")
        return llvm.bitcast(pair, made)

    found = []
    for registers in np.split(codes.registers, chunks, axis=1):
        arrays = []
        for i in range(16 // bits):
            asm, made = instructions(bits, i), np.empty_like(registers)
            for at, word in np.ndenumerate(registers):
                made[at] = number(word, asm)
            arrays.append(type(codes)(_registers=made, _layout=plgpu.Layout.WGMMA.to_mgpu(), _is_signed=None))
        found.append(arrays)
    return found


def instructions(bits: int, i: int) -> str:
    """PTX that makes a pair of bfloat16, the codes i of both halves of a word.

    With the exponent of 128, the last bits of a bfloat16 count 1, 2, 4, ...: a field that is put there is 128 plus
    4^f times its value, f = 0, 1 or 2 for fields that begin at bit 0, 2 or 4. The sign bit of a two's complement,
    turned over, adds half the range. A multiply-add takes both away; each step is exact. Of 8 bits seven fit; the sign
    bit alone makes the 128 that is subtracted a 256.
    """
    if bits == 8:
        return f"""{{
        .reg .b32 word, low, base;
        shr.b32 word, $1, {8 * i};
        lop3.b32 low, word, 0x007F007F, 0x43004300, 0xEA;
        lop3.b32 base, word, 0x00800080, 0x43004300, 0xEA;
        sub.bf16x2 $0, low, base;
        }}"""
    fields = 3 if bits == 2 else 1  # that fit into seven bits with one shift
    shift, f = i // fields * fields * bits, i % fields
    mask, sign, ratio = (2**bits - 1) << (bits * f), 1 << (bits * f + bits - 1), 2 ** (bits * f)
    twice = {name: f"0x{value:04X}{value:04X}" for name, value in (("mask", mask), ("magic", 0x4300 | sign))}
    times, plus = (_bits(v) for v in (1 / ratio, -(128 / ratio + 2 ** (bits - 1))))
    return f"""{{
    .reg .b32 word, times, plus;
    shr.b32 word, $1, {shift};
    lop3.b32 word, word, {twice["mask"]}, {twice["magic"]}, 0x6A;
    mov.b32 times, 0x{times}{times};
    mov.b32 plus, 0x{plus}{plus};
    fma.rn.bf16x2 $0, word, times, plus;
    }}"""


def _bits(value: float) -> str:
    return f"{int(np.asarray(jnp.bfloat16(value)).view(np.uint16)):04X}"
