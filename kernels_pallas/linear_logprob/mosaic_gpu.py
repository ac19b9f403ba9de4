"""The forward pass as one Mosaic kernel for Hopper: logits live in registers only."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from .config import Config
from .reference import LinearLogprob

_FAR = -1e30  # a logit that counts for nothing, and whose differences stay finite


def forward(
    hidden: jax.Array, weight: jax.Array, targets: jax.Array, config: Config, *, interpret: Any = None
) -> LinearLogprob:
    """`reference` for half precision on Hopper; `config.check` says for which shapes.

    A program computes `rows` tokens against a part of the vocabulary, tile by tile: two warpgroups multiply, one loads.
    What is kept of a tile is, for each token, the greatest logit m, sum e^(z - m), sum e^(z - m) (z - m) and the
    target's z. The parts are joined outside. The last tile of a part may begin in the one before: its
    columns count once.
    """
    count, d = hidden.shape
    v, n = weight.shape[0], max(-(-count // 8) * 8, config.rows)
    hidden, targets = jnp.pad(hidden, ((0, n - count), (0, 0))), jnp.pad(targets.astype(jnp.int32), (0, n - count))
    wide, tiles = 2 * config.words, -(-v // (2 * config.words))
    each, steps = -(-tiles // config.splits), d // config.depth
    dialect = Dialect(interpret)

    def kernel(h_hbm: Any, w_hbm: Any, t_hbm: Any, out_hbm: Any, scratch: Any) -> None:
        h_smem, w_smem, t_smem, out_smem, loaded, used, ready = scratch
        wg, part = lax.axis_index("wg"), lax.axis_index("part")
        rows = pl.ds(jnp.minimum(lax.axis_index("rows") * config.rows, n - config.rows), config.rows)

        def first_of(tile: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = (part * each + tile) * wide
            return jnp.minimum(own, v - wide), own

        @pl.when(wg == 2)
        def _load() -> None:
            dialect.set_max_registers(40, "decrease")

            def one(step: jax.Array, _: None) -> None:
                slot = lax.rem(step, jnp.int32(config.stages))

                @pl.when(step >= config.stages)
                def _wait() -> None:
                    plgpu.barrier_wait(used.at[slot])

                column = pl.ds(lax.rem(step, jnp.int32(steps)) * config.depth, config.depth)
                start = first_of(lax.div(step, jnp.int32(steps)))[0]
                plgpu.copy_gmem_to_smem(h_hbm.at[rows, column], h_smem.at[slot], loaded.at[slot])
                words = pl.ds(start, wide)
                source = w_hbm.at[column, words] if dialect.transposed else w_hbm.at[words, column]
                plgpu.copy_gmem_to_smem(source, w_smem.at[slot], loaded.at[slot])

            lax.fori_loop(0, each * steps, one, None)
            for step in range(max(each * steps - config.stages, 0), each * steps):
                plgpu.barrier_wait(used.at[step % config.stages])

        @pl.when(wg < 2)
        def _multiply() -> None:
            dialect.set_max_registers(232, "increase")

            @pl.when(wg == 0)
            def _targets() -> None:
                plgpu.copy_gmem_to_smem(t_hbm.at[rows], t_smem, ready)

            plgpu.barrier_wait(ready)
            target = dialect.load(t_smem, plgpu.Layout.WGMMA.reduce(1))

            def tile(index: jax.Array, past: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                def product(acc: Any) -> jax.Array:
                    def one(k: jax.Array, _: None) -> None:
                        step = index * steps + k
                        slot = lax.rem(step, jnp.int32(config.stages))
                        plgpu.barrier_wait(loaded.at[slot])
                        half = pl.ds(wg * config.words, config.words)
                        w = w_smem.at[slot, :, half] if dialect.transposed else dialect.turn(w_smem.at[slot, half])
                        plgpu.wgmma(acc, h_smem.at[slot], w)
                        plgpu.wgmma_wait(0)
                        plgpu.barrier_arrive(used.at[slot])

                    lax.fori_loop(0, steps, one, None)
                    return acc[...]

                z = pl.run_scoped(product, plgpu.ACC((config.rows, config.words), jnp.float32))
                start, own = first_of(index)
                word = start + wg * config.words + dialect.iota(z.shape, 1)
                mine = word >= own
                most, total, below, chosen = past
                highest = jnp.maximum(most, jnp.max(jnp.where(mine, z, _FAR), axis=1))
                under = z - lax.broadcast_in_dim(highest, z.shape, [0])
                share = jnp.where(mine, jnp.exp(under), 0.0)
                shift = most - highest
                kept = jnp.exp(shift)
                hit = mine & (word == lax.broadcast_in_dim(target, z.shape, [0]))
                return (
                    highest,
                    total * kept + jnp.sum(share, axis=1),
                    (below + total * shift) * kept + jnp.sum(share * under, axis=1),
                    chosen + jnp.sum(jnp.where(hit, z, 0.0), axis=1),
                )

            zero = dialect.cast(jnp.zeros((config.rows,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))
            found = lax.fori_loop(0, each, tile, (zero + _FAR, zero, zero, zero))
            for i, value in enumerate(found):
                out_smem[wg, i] = value
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem.at[wg], out_hbm.at[part * 2 + wg, :, rows])
            plgpu.wait_smem_to_gmem(0)

    def entry(h_hbm: Any, w_hbm: Any, t_hbm: Any, out_hbm: Any) -> None:
        tiled = dialect.transforms(config.depth, hidden.dtype)
        w_shape = (config.depth, wide) if dialect.transposed else (wide, config.depth)
        pl.run_scoped(
            lambda *scratch: kernel(h_hbm, w_hbm, t_hbm, out_hbm, scratch),
            plgpu.SMEM((config.stages, config.rows, config.depth), hidden.dtype, transforms=tiled),
            plgpu.SMEM((config.stages, *w_shape), weight.dtype, transforms=tiled),
            plgpu.SMEM((config.rows,), jnp.int32),
            plgpu.SMEM((2, 4, config.rows), jnp.float32),
            plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
            plgpu.Barrier(num_arrivals=2, num_barriers=config.stages),
            plgpu.Barrier(),
            collective_axes="wg",
        )

    parts = compiled(
        entry,
        out_type=jax.ShapeDtypeStruct((2 * config.splits, 4, n), jnp.float32),
        grid=(-(-n // config.rows), config.splits),
        grid_names=("rows", "part"),
        num_threads=3,
        thread_name="wg",
        interpret=interpret,
    )(hidden, weight.T if dialect.transposed else weight, targets)
    return join(parts[:, :, :count])


def join(parts: jax.Array) -> LinearLogprob:
    """Parts `[P, 4, N]` of the vocabulary to the whole; a target that none had stays at logit 0."""
    most, total, below, chosen = (parts[:, i] for i in range(4))
    highest = jnp.max(most, axis=0)
    shift = most - highest[None]
    share = jnp.exp(shift)
    whole = jnp.sum(total * share, axis=0)
    mean = jnp.sum((below + total * shift) * share, axis=0) / whole
    logsumexp = highest + jnp.log(whole)
    return LinearLogprob(jnp.sum(chosen, axis=0) - logsumexp, jnp.log(whole) - mean, logsumexp)
