"""The product as one Mosaic kernel for Hopper, for a small batch: codes are all that is read of the weight.

The time of a small batch is that of the weight's bytes. So codes go from memory to shared memory as they are stored
(TMA, several steps ahead, by a warpgroup that does nothing else), and the others make bfloat16 of them in registers,
which are the left operand of wgmma as they stand: 64 rows of the weight are its M, the batch (8 to 32) its N.

What lies in a register is a word of four bytes, which `_unpack` turns into pairs, one code of each half of the word:
shift, one three-input logical operation, one multiply-add make two exact numbers. A word has 32 / bits codes, so
every 16 / bits-th input is in one pair's array; the columns of x are put into that order before, by XLA: x is small.

Without blocks the scales are applied at the end, by XLA, with the sum over `splits`. With blocks each gets an
accumulator of its own, which is scaled as it is added.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from ._unpack import unpacked
from .config import Config


def forward(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    *,
    bits: int,
    block: int | None,
    config: Config,
    interpret: Any = None,
) -> jax.Array:
    """`reference` for bfloat16 `[M, K]` on Hopper; `config.check` says for which shapes."""
    (m, k), n, dialect = x.shape, len(codes), Dialect(interpret)
    batch, inputs, pairs = -(-m // 8) * 8, config.depth * 8 // bits, 16 // bits
    steps = k // inputs // config.splits
    chunks = 1 if block is None else max(inputs // block, 1)  # of a step, with one scale each
    width = config.depth // 2 // chunks  # numbers of a row in a chunk of an array of pairs
    rows, parts = config.rows, chunks * pairs

    def kernel(x_hbm: Any, c_hbm: Any, s_hbm: Any, out_hbm: Any, scratch: Any) -> None:
        x_smem, c_smem, s_smem, out_smem, left_smem, loaded, used = scratch
        wg, part = lax.axis_index("wg"), lax.axis_index("part")
        start = jnp.minimum(lax.axis_index("rows") * rows, n - rows)
        own = pl.ds(wg * 64, 64)

        @pl.when(wg == config.warpgroups)
        def _load() -> None:
            dialect.set_max_registers(40, "decrease")

            def one(step: jax.Array, _: None) -> None:
                slot = lax.rem(step, jnp.int32(config.stages))

                @pl.when(step >= config.stages)
                def _wait() -> None:
                    plgpu.barrier_wait(used.at[slot])

                at = part * steps + step
                column = pl.ds(at * config.depth, config.depth)
                plgpu.copy_gmem_to_smem(c_hbm.at[pl.ds(start, rows), column], c_smem.at[slot], loaded.at[slot])
                plgpu.copy_gmem_to_smem(x_hbm.at[at], x_smem.at[slot], loaded.at[slot])
                if block is not None:
                    first = lax.div(at * inputs, jnp.int32(block))
                    source = s_hbm.at[pl.ds(first, chunks), pl.ds(start, rows)]
                    plgpu.copy_gmem_to_smem(source, s_smem.at[slot], loaded.at[slot])

            lax.fori_loop(0, steps, one, None)
            for step in range(max(steps - config.stages, 0), steps):
                plgpu.barrier_wait(used.at[step % config.stages])

        @pl.when(wg < config.warpgroups)
        def _multiply() -> None:
            dialect.set_max_registers({1: 240, 2: 232, 3: 152, 4: 112}[config.warpgroups], "increase")

            def add(acc: Any, numbers: list[jax.Array], slot: jax.Array, chunk: int) -> None:
                for pair, left in enumerate(numbers):
                    right = x_smem.at[slot, chunk * pairs + pair]
                    if dialect.transposed:  # where registers are no left operand either
                        left_smem[wg] = left
                        plgpu.commit_smem()
                        plgpu.wgmma(acc, left_smem.at[wg], right)
                        plgpu.wgmma_wait(0)
                    else:
                        plgpu.wgmma(acc, left, dialect.turn(right))

            def one_scale(acc: Any) -> jax.Array:
                def one(step: jax.Array, _: None) -> None:
                    slot = lax.rem(step, jnp.int32(config.stages))
                    plgpu.barrier_wait(loaded.at[slot])
                    add(acc, unpacked(dialect, c_smem.at[slot, own], bits, 1)[0], slot, 0)
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(used.at[slot])

                lax.fori_loop(0, steps, one, None)
                return acc[...]

            def one_block(step: jax.Array, total: jax.Array) -> jax.Array:
                slot = lax.rem(step, jnp.int32(config.stages))
                plgpu.barrier_wait(loaded.at[slot])
                for chunk, numbers in enumerate(unpacked(dialect, c_smem.at[slot, own], bits, chunks)):

                    def product(acc: Any, numbers: list[jax.Array] = numbers, chunk: int = chunk) -> jax.Array:
                        add(acc, numbers, slot, chunk)
                        return acc[...]

                    here = pl.run_scoped(product, plgpu.ACC((64, batch), jnp.float32))
                    scale = dialect.load(s_smem.at[slot, chunk, own], plgpu.Layout.WGMMA.reduce(1))
                    total = total + here * lax.broadcast_in_dim(scale, here.shape, [0])
                plgpu.barrier_arrive(used.at[slot])
                return total

            if block is None:
                out_smem[wg] = pl.run_scoped(one_scale, plgpu.ACC((64, batch), jnp.float32))
            else:
                zero = dialect.cast(jnp.zeros((64, batch), jnp.float32), plgpu.Layout.WGMMA)
                out_smem[wg] = lax.fori_loop(0, steps, one_block, zero)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem.at[wg], out_hbm.at[part, pl.ds(start + wg * 64, 64)])
            plgpu.wait_smem_to_gmem(0)

    def entry(x_hbm: Any, c_hbm: Any, s_hbm: Any, out_hbm: Any) -> None:
        right = (width, batch) if dialect.transposed else (batch, width)
        of_x, of_codes = dialect.transforms(width, x.dtype), dialect.transforms(config.depth, codes.dtype)
        left = (config.warpgroups, 64, width) if dialect.transposed else (1, 1, 8)
        scaled = (config.stages, chunks, rows) if block is not None else (1, 1, 8)
        pl.run_scoped(
            lambda *scratch: kernel(x_hbm, c_hbm, s_hbm, out_hbm, scratch),
            plgpu.SMEM((config.stages, parts, *right), x.dtype, transforms=of_x),
            plgpu.SMEM((config.stages, rows, config.depth), codes.dtype, transforms=of_codes),
            plgpu.SMEM(scaled, jnp.float32),
            plgpu.SMEM((config.warpgroups, 64, batch), jnp.float32),
            plgpu.SMEM(left, x.dtype),
            plgpu.Barrier(num_arrivals=2 if block is None else 3, num_barriers=config.stages),
            plgpu.Barrier(num_arrivals=config.warpgroups, num_barriers=config.stages),
            collective_axes="wg",
        )

    scales = scales.astype(jnp.float32)
    spread = jnp.zeros((1, 8), jnp.float32) if block is None else scales.T
    found = compiled(
        entry,
        out_type=jax.ShapeDtypeStruct((config.splits, n, batch), jnp.float32),
        grid=(-(-n // rows), config.splits),
        grid_names=("rows", "part"),
        num_threads=config.warpgroups + 1,
        thread_name="wg",
        interpret=interpret,
    )(_in_pairs(x, batch, inputs, pairs, chunks, dialect.transposed), codes, spread)
    total = jnp.sum(found, axis=0)
    if block is None:
        total = total * scales[:, None]
    return total.T[:m].astype(x.dtype)


def _in_pairs(x: jax.Array, batch: int, inputs: int, pairs: int, chunks: int, turned: bool) -> jax.Array:
    """`[M, K]` as `[K / inputs, chunks * pairs, batch, width]`: what multiplies each array of `unpacked`."""
    x = jnp.pad(x, ((0, batch - len(x)), (0, 0)))
    x = x.reshape(batch, x.shape[1] // inputs, chunks, inputs // chunks // (2 * pairs), 2, pairs)
    x = x.transpose((1, 2, 5, 0, 3, 4)).reshape(x.shape[1], chunks * pairs, batch, -1)
    return x.swapaxes(2, 3) if turned else x
