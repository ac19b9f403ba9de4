"""The gradient of keys and values as a Mosaic kernel: a program has the keys of a block, and walks who lists it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from .config import ROWS, Config
from .lists import Lists, turned
from .mosaic_gpu_tiles import STEP, Slopes, bend, drain, product, visible
from .rules import Inputs, Rules


def of_keys(
    x: Inputs, lists: Lists, rules: Rules, config: Config, slopes: Slopes, keys: int, interpret: Any
) -> tuple[jax.Array, jax.Array]:
    """`[B, S, K, D]` and `[B, S, K, E]`, of whole blocks."""
    dialect, dtype = Dialect(interpret), x.q.dtype
    batch, length, heads, d = x.q.shape
    size, shared, e = x.v.shape[1:]
    rows, count, number = length // rules.block_q, size // rules.block_k, rules.block_k // ROWS
    who = turned(lists, shared, count)
    apart = lists.index.shape[1] not in (1, shared)  # a list for every query head
    each = 1 if apart else heads // shared
    parts, stages = rules.block_q // STEP, config.back_stages
    marked = x.segments is not None

    def kernel(hbm: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
        q_hbm, do_hbm, base_hbm, thr_hbm, k_hbm, v_hbm, qt_hbm, dot_hbm, order_hbm, start_hbm, full_hbm = hbm[:11]
        rows_hbm, keys_hbm, dk_hbm, dv_hbm = hbm[11:]
        k_smem, v_smem, q_smem, do_smem, base_smem, thr_smem, qt_smem, dot_smem = scratch[0][:8]
        rows_smem, keys_smem, stage = scratch[0][8:]
        own_ready, q_ready, do_ready, q_used, do_used = scratch[1]
        wg, block = lax.axis_index("wg"), lax.axis_index("block")
        group, row = lax.axis_index("group"), lax.axis_index("batch")
        own = row if lists.index.shape[0] > 1 else 0, group if lists.index.shape[1] > 1 else 0
        start = start_hbm[(*own, block)]
        steps = (start_hbm[(*own, block + 1)] - start) * (each * parts)
        plain = (full_hbm[(*own, block)] - start) * (each * parts)

        def place(step: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The first query of a step, and its head."""
            item = order_hbm[(*own, start + lax.div(step, jnp.int32(each * parts)))]
            of_group = lax.rem(lax.div(step, jnp.int32(parts)), jnp.int32(each))
            head = group * (heads // shared) + (lax.div(item, jnp.int32(rows)) if apart else of_group)
            return lax.rem(item, jnp.int32(rows)) * rules.block_q + lax.rem(step, jnp.int32(parts)) * STEP, head

        @pl.when(wg == number)
        def _load() -> None:
            if number > 1:
                dialect.set_max_registers(40, "decrease")

            def one(step: jax.Array, _: None) -> None:
                slot = lax.rem(step, jnp.int32(stages))
                first, head = place(step)
                source = pl.ds(first, STEP)

                def wait(barrier: Any) -> None:
                    @pl.when(step >= stages)
                    def _wait() -> None:
                        plgpu.barrier_wait(barrier.at[slot])

                wait(q_used)
                plgpu.copy_gmem_to_smem(q_hbm.at[row, source, head], q_smem.at[slot], q_ready.at[slot])
                plgpu.copy_gmem_to_smem(base_hbm.at[row, head, source], base_smem.at[slot], q_ready.at[slot])
                plgpu.copy_gmem_to_smem(thr_hbm.at[row, head, source], thr_smem.at[slot], q_ready.at[slot])
                if qt_smem is not None:
                    plgpu.copy_gmem_to_smem(qt_hbm.at[row, head, :, source], qt_smem.at[slot], q_ready.at[slot])
                if marked:
                    plgpu.copy_gmem_to_smem(rows_hbm.at[row, source], rows_smem.at[slot], q_ready.at[slot])
                wait(do_used)
                plgpu.copy_gmem_to_smem(do_hbm.at[row, source, head], do_smem.at[slot], do_ready.at[slot])
                if dot_smem is not None:
                    plgpu.copy_gmem_to_smem(dot_hbm.at[row, head, :, source], dot_smem.at[slot], do_ready.at[slot])

            lax.fori_loop(0, steps, one, None)
            drain(steps, stages, q_used, do_used)

        @pl.when(wg < number)
        def _multiply() -> None:
            if number > 1:
                dialect.set_max_registers(232, "increase")
            first_key = block * rules.block_k + wg * ROWS
            mine = pl.ds(first_key, ROWS)
            plgpu.copy_gmem_to_smem(k_hbm.at[row, mine, group], k_smem.at[wg], own_ready.at[wg])
            plgpu.copy_gmem_to_smem(v_hbm.at[row, mine, group], v_smem.at[wg], own_ready.at[wg])
            if marked:
                plgpu.copy_gmem_to_smem(keys_hbm.at[row, mine], keys_smem.at[wg], own_ready.at[wg])
            plgpu.barrier_wait(own_ready.at[wg])
            shape = ROWS, STEP

            def one(masked: bool, step: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                dk, dv = sums
                slot = lax.rem(step, jnp.int32(stages))
                plgpu.barrier_wait(q_ready.at[slot])
                q = dialect.turn(q_smem.at[slot]) if qt_smem is None else qt_smem.at[slot]
                z, slope_of_cap = bend(product(k_smem.at[wg], q, shape), rules)
                base, through = (
                    lax.broadcast_in_dim(dialect.load(ref.at[slot], plgpu.Layout.WGMMA.reduce(0)), shape, [1])
                    for ref in (base_smem, thr_smem)
                )
                weight = jnp.exp2(z - base)
                if masked:
                    marks = None
                    if marked:
                        mark = dialect.load(rows_smem.at[slot], plgpu.Layout.WGMMA.reduce(0))
                        other = dialect.load(keys_smem.at[wg], plgpu.Layout.WGMMA.reduce(1))
                        marks = lax.broadcast_in_dim(mark, shape, [1]), lax.broadcast_in_dim(other, shape, [0])
                    column, query = dialect.iota(shape, 0) + first_key, dialect.iota(shape, 1) + place(step)[0]
                    weight = jnp.where(visible(rules, keys, column, query, marks), weight, 0.0)
                plgpu.barrier_wait(do_ready.at[slot])
                staged = None if stage is None else stage.at[wg]
                do = dialect.turn(do_smem.at[slot]) if dot_smem is None else dot_smem.at[slot]
                slope = product(v_smem.at[wg], do, shape)
                dv = dialect.add_product(dv, weight.astype(dtype), do_smem.at[slot], staged)
                plgpu.barrier_arrive(do_used.at[slot])
                slope = weight * (slope - through) * rules.scale
                slope = slope if slope_of_cap is None else slope * slope_of_cap
                dk = dialect.add_product(dk, slope.astype(dtype), q_smem.at[slot], staged)
                plgpu.barrier_arrive(q_used.at[slot])
                return dk, dv

            sums = tuple(dialect.cast(jnp.zeros((ROWS, n), jnp.float32), plgpu.Layout.WGMMA) for n in (d, e))
            sums = lax.fori_loop(0, plain, lambda step, sums: one(False, step, sums), sums)
            dk, dv = lax.fori_loop(plain, steps, lambda step, sums: one(True, step, sums), sums)
            k_smem[wg] = dk.astype(dtype)
            v_smem[wg] = dv.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(k_smem.at[wg], dk_hbm.at[row, mine, group])
            plgpu.copy_smem_to_gmem(v_smem.at[wg], dv_hbm.at[row, mine, group])
            plgpu.wait_smem_to_gmem(0)

    def entry(*refs: Any) -> None:
        operands = list(refs)
        if not dialect.transposed:
            operands[6:6] = [None, None]
        if not marked:
            operands[11:11] = [None, None]
        wide, tall = dialect.transforms(d, dtype), dialect.transforms(e, dtype)
        arrays = (
            plgpu.SMEM((number, ROWS, d), dtype, transforms=wide),
            plgpu.SMEM((number, ROWS, e), dtype, transforms=tall),
            plgpu.SMEM((stages, STEP, d), dtype, transforms=wide),
            plgpu.SMEM((stages, STEP, e), dtype, transforms=tall),
            plgpu.SMEM((stages, STEP), jnp.float32),
            plgpu.SMEM((stages, STEP), jnp.float32),
            plgpu.SMEM((stages, d, STEP), dtype) if dialect.transposed else None,
            plgpu.SMEM((stages, e, STEP), dtype) if dialect.transposed else None,
            plgpu.SMEM((stages, STEP), jnp.int32) if marked else None,
            plgpu.SMEM((number, ROWS), jnp.int32) if marked else None,
            plgpu.SMEM((number, ROWS, STEP), dtype) if dialect.transposed else None,
        )
        barriers = (
            plgpu.Barrier(num_arrivals=2 + marked, num_barriers=number),
            plgpu.Barrier(num_arrivals=3 + marked + dialect.transposed, num_barriers=stages),
            plgpu.Barrier(num_arrivals=1 + dialect.transposed, num_barriers=stages),
            plgpu.Barrier(num_arrivals=number, num_barriers=stages),
            plgpu.Barrier(num_arrivals=number, num_barriers=stages),
        )
        pl.run_scoped(lambda *scratch: kernel(tuple(operands), scratch), arrays, barriers, collective_axes="wg")

    plain_forms = tuple(a.transpose(0, 2, 3, 1) for a in (x.q, slopes.to_y)) if dialect.transposed else ()
    return compiled(
        entry,
        out_type=(
            jax.ShapeDtypeStruct((batch, size, shared, d), dtype),
            jax.ShapeDtypeStruct((batch, size, shared, e), dtype),
        ),
        grid=(count, shared, batch),
        grid_names=("block", "group", "batch"),
        num_threads=number + 1,
        thread_name="wg",
        approximate=True,
        interpret=interpret,
    )(x.q, *slopes, x.k, x.v, *plain_forms, *who, *((x.segments, x.key_segments) if marked else ()))
