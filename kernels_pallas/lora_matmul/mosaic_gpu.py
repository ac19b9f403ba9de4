"""Both products as one Mosaic kernel for Hopper, into one accumulator.

One program a multiprocessor goes through tiles of the result; while two warpgroups multiply and write a tile, a third
loads what the next one needs (TMA, several steps ahead, across the end of a tile). A tile's steps are those of the
inputs, and after them those of the low-rank term: `depth` columns of what x @ a.T gave and of b, zeros where the rank
is less. So the term costs one step in K / depth + 1, and no memory for a second result.

One product is in flight while the next begins: a step's buffers are given back one step later. The result leaves
through two small buffers a warpgroup, 64 columns at a time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._device import MULTIPROCESSORS
from kernels_pallas._mosaic import Dialect, compiled

from .config import Config


def forward(
    x: jax.Array,
    weight: jax.Array,
    hidden: jax.Array,
    b: jax.Array,
    *,
    config: Config,
    cores: int = MULTIPROCESSORS,
    interpret: Any = None,
) -> jax.Array:
    """`x [M, K] @ weight [N, K].T + hidden [M, R] @ b [N, R].T` on Hopper; `config.check` says for which shapes."""
    (count, k), n, dialect = x.shape, len(weight), Dialect(interpret)
    m, half, room = -(-count // 8) * 8, config.rows // 2, -hidden.shape[1] % config.depth
    if m != count:
        x, hidden = (jnp.pad(v, ((0, m - count), (0, 0))) for v in (x, hidden))
    hidden, b = (jnp.pad(v, ((0, 0), (0, room))) for v in (hidden, b))
    down, across = -(-m // config.rows), -(-n // config.columns)
    programs, turns = min(cores, down * across), -(-down * across // cores)
    wide, thin = k // config.depth, hidden.shape[1] // config.depth
    steps, last = wide + thin, -(-config.columns // 64)

    def place(tile: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where a tile begins: bands of `band` tiles of rows, in each band column by column."""
        size = config.band * across
        first = lax.div(tile, jnp.int32(size)) * config.band
        tall = jnp.minimum(down - first, config.band)
        within = lax.rem(tile, jnp.int32(size))
        row, column = first + lax.rem(within, tall), lax.div(within, tall)
        return jnp.minimum(row * config.rows, m - config.rows), jnp.minimum(column * config.columns, n - config.columns)

    def kernel(sources: Any, out_hbm: Any, scratch: Any) -> None:
        x_hbm, w_hbm, h_hbm, b_hbm = sources
        x_smem, w_smem, out_smem, loaded, used = scratch
        wg, program = lax.axis_index("wg"), lax.axis_index("program")

        def every_tile(one: Any) -> None:
            def turn(index: jax.Array, _: None) -> None:
                tile = index * programs + program

                @pl.when(tile < down * across)
                def _tile() -> None:
                    one(index * steps, *place(tile))

            lax.fori_loop(0, turns, turn, None)

        @pl.when(wg == 2)
        def _load() -> None:
            dialect.set_max_registers(40, "decrease")

            def one(begun: jax.Array, row: jax.Array, column: jax.Array) -> None:
                def load(i: jax.Array, _: None, left: Any, right: Any, before: int) -> None:
                    step = begun + before + i
                    slot = lax.rem(step, jnp.int32(config.stages))

                    @pl.when(step >= config.stages)
                    def _wait() -> None:
                        plgpu.barrier_wait(used.at[slot])

                    at, own = pl.ds(i * config.depth, config.depth), pl.ds(column, config.columns)
                    plgpu.copy_gmem_to_smem(left.at[pl.ds(row, config.rows), at], x_smem.at[slot], loaded.at[slot])
                    source = right.at[at, own] if dialect.transposed else right.at[own, at]
                    plgpu.copy_gmem_to_smem(source, w_smem.at[slot], loaded.at[slot])

                lax.fori_loop(0, wide, partial(load, left=x_hbm, right=w_hbm, before=0), None)
                lax.fori_loop(0, thin, partial(load, left=h_hbm, right=b_hbm, before=wide), None)

            every_tile(one)
            for slot in range(config.stages):  # each was used since it was last waited for
                plgpu.barrier_wait(used.at[slot])

        @pl.when(wg < 2)
        def _multiply() -> None:
            dialect.set_max_registers(232, "increase")

            def one(begun: jax.Array, row: jax.Array, column: jax.Array) -> None:
                def product(acc: Any) -> jax.Array:
                    def add(i: jax.Array, _: None) -> None:
                        slot = lax.rem(begun + i, jnp.int32(config.stages))
                        plgpu.barrier_wait(loaded.at[slot])
                        w = w_smem.at[slot] if dialect.transposed else dialect.turn(w_smem.at[slot])
                        plgpu.wgmma(acc, x_smem.at[slot, pl.ds(wg * half, half)], w)
                        plgpu.wgmma_wait(1)

                        @pl.when(i > 0)
                        def _before() -> None:
                            plgpu.barrier_arrive(used.at[lax.rem(begun + i - 1, jnp.int32(config.stages))])

                    lax.fori_loop(0, steps, add, None)
                    return acc[...]

                found = pl.run_scoped(product, plgpu.ACC((half, config.columns), jnp.float32)).astype(x.dtype)
                plgpu.barrier_arrive(used.at[lax.rem(begun + steps - 1, jnp.int32(config.stages))])
                for part in range(last):
                    plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                    out_smem[wg, part % 2] = found[:, part * 64 : (part + 1) * 64]
                    plgpu.commit_smem()
                    to = out_hbm.at[pl.ds(row + wg * half, half), pl.ds(column + part * 64, 64)]
                    plgpu.copy_smem_to_gmem(out_smem.at[wg, part % 2], to)

            every_tile(one)
            plgpu.wait_smem_to_gmem(0)

    def entry(x_hbm: Any, w_hbm: Any, h_hbm: Any, b_hbm: Any, out_hbm: Any) -> None:
        w_shape = (config.depth, config.columns) if dialect.transposed else (config.columns, config.depth)
        tiled, narrow = dialect.transforms(config.depth, x.dtype), dialect.transforms(64, x.dtype)
        pl.run_scoped(
            lambda *scratch: kernel((x_hbm, w_hbm, h_hbm, b_hbm), out_hbm, scratch),
            plgpu.SMEM((config.stages, config.rows, config.depth), x.dtype, transforms=tiled),
            plgpu.SMEM((config.stages, *w_shape), x.dtype, transforms=tiled),
            plgpu.SMEM((2, 2, half, 64), x.dtype, transforms=narrow),
            plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
            plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
            collective_axes="wg",
        )

    turned = (lambda v: v.T) if dialect.transposed else (lambda v: v)
    return compiled(
        entry,
        out_type=jax.ShapeDtypeStruct((m, n), x.dtype),
        grid=(programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="wg",
        interpret=interpret,
    )(x, turned(weight), hidden, turned(b))[:count]
