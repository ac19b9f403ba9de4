"""The greatest score of every group of keys as one Mosaic kernel for Hopper: scores live in registers only.

A program computes `rows` queries against a part of the keys, tile by tile. One warpgroup loads tiles of queries and of
keys by TMA, `stages` steps ahead; two multiply (wgmma, half of a tile's keys each), with one product in flight while
the step before is given back to the loader. Groups are contiguous keys, so that a group's maximum is a maximum over
registers and the four lanes of a row. A store is in flight while the next tile is multiplied. What is written is
`[G, Q]`, one row a group: stores are contiguous, and the maxima of maxima that the selection takes read along it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from .config import Config


def maxima(
    queries: jax.Array,
    keys: jax.Array,
    bias: jax.Array | None,
    lengths: jax.Array | None,
    group: int,
    config: Config,
    *,
    interpret: Any = None,
) -> jax.Array:
    """Maxima `[N // group, Q]` in float32 of whole groups; keys after the last whole group are left out.

    Arguments are those of `xla.maxima`; `config.check` says for which shapes. The last tile may begin in the one
    before: its groups are written once.
    """
    count, d = queries.shape
    rows, columns, wide = config.rows, config.columns, 2 * config.columns
    n, q = len(keys) // group * group, -(-count // rows) * rows
    tiles, steps, per = -(-n // wide), d // config.depth, columns // group
    each = -(-tiles // config.splits)
    pieces = range(-(-wide // 256))  # a copy is 256 keys or fewer
    size = wide // len(pieces)
    dialect = Dialect(interpret)
    queries = jnp.pad(queries, ((0, q - count), (0, 0)))
    limits = jnp.pad(lengths.astype(jnp.int32), (0, q - count)) if lengths is not None else jnp.zeros(q, jnp.int32)
    added = jnp.zeros(wide, jnp.float32) if bias is None else bias.astype(jnp.float32)

    def kernel(q_hbm: Any, k_hbm: Any, b_hbm: Any, l_hbm: Any, out_hbm: Any, scratch: Any) -> None:
        q_smem, k_smem, b_smem, l_smem, out_smem, loaded, used, b_loaded, b_used, ready = scratch
        wg, part = lax.axis_index("wg"), lax.axis_index("part")
        mine = pl.ds(lax.axis_index("rows") * rows, rows)
        first = part * each
        here = jnp.clip(tiles - first, 0, each)  # tiles of this part

        def first_of(tile: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = (first + tile) * wide
            return jnp.minimum(own, n - wide), own

        @pl.when(wg == 2)
        def _load() -> None:
            dialect.set_max_registers(40, "decrease")

            def one(step: jax.Array, _: None) -> None:
                slot = lax.rem(step, jnp.int32(config.stages))
                tile, k = lax.div(step, jnp.int32(steps)), lax.rem(step, jnp.int32(steps))
                start = first_of(tile)[0]

                if bias is not None:

                    @pl.when(k == 0)
                    def _bias() -> None:
                        at = lax.rem(tile, jnp.int32(2))

                        @pl.when(tile >= 2)
                        def _wait() -> None:
                            plgpu.barrier_wait(b_used.at[at])

                        for piece in pieces:
                            own = pl.ds(start + piece * size, size)
                            room = b_smem.at[at, pl.ds(piece * size, size)]
                            plgpu.copy_gmem_to_smem(b_hbm.at[own], room, b_loaded.at[at])

                @pl.when(step >= config.stages)
                def _wait() -> None:
                    plgpu.barrier_wait(used.at[slot])

                channels = pl.ds(k * config.depth, config.depth)
                plgpu.copy_gmem_to_smem(q_hbm.at[mine, channels], q_smem.at[slot], loaded.at[slot])
                for piece in pieces:
                    own, room = pl.ds(start + piece * size, size), pl.ds(piece * size, size)
                    if dialect.transposed:
                        source, target = k_hbm.at[channels, own], k_smem.at[slot, :, room]
                    else:
                        source, target = k_hbm.at[own, channels], k_smem.at[slot, room]
                    plgpu.copy_gmem_to_smem(source, target, loaded.at[slot])

            lax.fori_loop(0, here * steps, one, None)

            def last(step: jax.Array, _: None) -> None:
                plgpu.barrier_wait(used.at[lax.rem(step, jnp.int32(config.stages))])

            lax.fori_loop(jnp.maximum(here * steps - config.stages, 0), here * steps, last, None)
            if bias is not None:

                def last_bias(tile: jax.Array, _: None) -> None:
                    plgpu.barrier_wait(b_used.at[lax.rem(tile, jnp.int32(2))])

                lax.fori_loop(jnp.maximum(here - 2, 0), here, last_bias, None)

        @pl.when(wg < 2)
        def _multiply() -> None:
            dialect.set_max_registers(232, "increase")
            limit = None
            if lengths is not None:

                @pl.when(wg == 0)
                def _limits() -> None:
                    plgpu.copy_gmem_to_smem(l_hbm.at[mine], l_smem, ready)

                plgpu.barrier_wait(ready)
                limit = dialect.load(l_smem, plgpu.Layout.WGMMA.reduce(1))

            half = pl.ds(wg * columns, columns)

            def tile(index: jax.Array, _: None) -> None:
                def product(acc: Any) -> jax.Array:
                    def one(k: jax.Array, _: None) -> None:
                        step = index * steps + k
                        slot = lax.rem(step, jnp.int32(config.stages))
                        plgpu.barrier_wait(loaded.at[slot])
                        w = k_smem.at[slot, :, half] if dialect.transposed else dialect.turn(k_smem.at[slot, half])
                        plgpu.wgmma(acc, q_smem.at[slot], w)
                        plgpu.wgmma_wait(1)

                        @pl.when(k > 0)
                        def _before() -> None:
                            plgpu.barrier_arrive(used.at[lax.rem(step - 1, jnp.int32(config.stages))])

                    lax.fori_loop(0, steps, one, None)
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(used.at[lax.rem(index * steps + steps - 1, jnp.int32(config.stages))])
                    return acc[...]

                z = pl.run_scoped(product, plgpu.ACC((rows, columns), jnp.float32))
                start, own = first_of(index)
                start = start + wg * columns
                if bias is not None:
                    at = lax.rem(index, jnp.int32(2))
                    plgpu.barrier_wait(b_loaded.at[at])
                    z = z + lax.broadcast_in_dim(
                        dialect.load(b_smem.at[at, half], plgpu.Layout.WGMMA.reduce(0)), z.shape, [1]
                    )
                    plgpu.barrier_arrive(b_used.at[at])
                seen = z == z  # NaN counts for nothing
                if limit is not None:
                    seen &= start + dialect.iota(z.shape, 1) < lax.broadcast_in_dim(limit, z.shape, [0])
                z = jnp.where(seen, z, -jnp.inf)
                plgpu.wait_smem_to_gmem(0)  # the tile before, whose room this one takes
                for i in range(per):
                    out_smem[wg, i] = jnp.max(z[:, i * group : (i + 1) * group], axis=1)
                plgpu.commit_smem()
                for i in range(per):

                    @pl.when(start + i * group >= own)
                    def _store(i: int = i) -> None:
                        at = lax.div(start, jnp.int32(group)) + i
                        plgpu.copy_smem_to_gmem(out_smem.at[wg, i], out_hbm.at[at, mine])

            lax.fori_loop(0, here, tile, None)
            plgpu.wait_smem_to_gmem(0)

    def entry(q_hbm: Any, k_hbm: Any, b_hbm: Any, l_hbm: Any, out_hbm: Any) -> None:
        tiled = dialect.transforms(config.depth, queries.dtype)
        k_shape = (config.depth, wide) if dialect.transposed else (wide, config.depth)
        pl.run_scoped(
            lambda *scratch: kernel(q_hbm, k_hbm, b_hbm, l_hbm, out_hbm, scratch),
            plgpu.SMEM((config.stages, rows, config.depth), queries.dtype, transforms=tiled),
            plgpu.SMEM((config.stages, *k_shape), keys.dtype, transforms=tiled),
            plgpu.SMEM((2, wide), jnp.float32),
            plgpu.SMEM((rows,), jnp.int32),
            plgpu.SMEM((2, per, rows), jnp.float32),
            plgpu.Barrier(num_arrivals=1 + len(pieces), num_barriers=config.stages),
            plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
            plgpu.Barrier(num_arrivals=len(pieces), num_barriers=2),
            plgpu.Barrier(num_arrivals=2, num_barriers=2),
            plgpu.Barrier(),
            collective_axes="wg",
        )

    most = compiled(
        entry,
        out_type=jax.ShapeDtypeStruct((n // group, q), jnp.float32),
        grid=(q // rows, config.splits),
        grid_names=("rows", "part"),
        num_threads=3,
        thread_name="wg",
        interpret=interpret,
    )(queries, keys.T if dialect.transposed else keys, added, limits)
    return most[:, :count]
