"""The gradient of the queries as a Mosaic kernel: a program has rows of one list, and walks it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from .config import ROWS, Config
from .lists import Lists
from .mosaic_gpu_tiles import STEP, Slopes, bend, drain, product, visible
from .rules import Inputs, Rules


def of_queries(
    x: Inputs, lists: Lists, rules: Rules, config: Config, slopes: Slopes, keys: int, interpret: Any
) -> jax.Array:
    """`[B, T, H, D]`, of whole blocks."""
    dialect, dtype = Dialect(interpret), x.q.dtype
    batch, rows, heads, d = x.q.shape
    shared, e = x.v.shape[2:]
    groups = heads if lists.index.shape[1] not in (1, shared) else shared
    each = heads // groups
    number = 2 if each * rules.block_q // ROWS % 2 == 0 else 1
    chunks, count = each * rules.block_q // ROWS // number, rows // rules.block_q
    stages, step_size = config.back_stages, min(rules.block_k, STEP)
    parts = rules.block_k // step_size
    marked = x.segments is not None

    def kernel(hbm: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
        q_hbm, do_hbm, base_hbm, thr_hbm, k_hbm, v_hbm, kt_hbm, vt_hbm, index_hbm, full_hbm, seen_hbm = hbm[:11]
        rows_hbm, keys_hbm, out_hbm = hbm[11:]
        q_smem, do_smem, base_smem, thr_smem, k_smem, v_smem, kt_smem, rows_smem, keys_smem, stage = scratch[0]
        own_ready, k_ready, v_ready, k_used, v_used = scratch[1]
        wg, at = lax.axis_index("wg"), lax.axis_index("at")
        group, row = lax.axis_index("group"), lax.axis_index("batch")
        chunk, block = lax.rem(at, jnp.int32(chunks)), count - 1 - lax.div(at, jnp.int32(chunks))
        own = row if lists.index.shape[0] > 1 else 0, group if lists.index.shape[1] > 1 else 0, block
        key_head = lax.div(group, jnp.int32(groups // shared))
        steps, plain = seen_hbm[own] * parts, full_hbm[own] * parts

        def first(step: jax.Array) -> jax.Array:
            block_of = index_hbm[(*own, lax.div(step, jnp.int32(parts)))]
            return block_of * rules.block_k + lax.rem(step, jnp.int32(parts)) * step_size

        @pl.when(wg == number)
        def _load() -> None:
            if number > 1:
                dialect.set_max_registers(40, "decrease")

            def one(step: jax.Array, _: None) -> None:
                slot = lax.rem(step, jnp.int32(stages))
                source = pl.ds(first(step), step_size)

                def wait(barrier: Any) -> None:
                    @pl.when(step >= stages)
                    def _wait() -> None:
                        plgpu.barrier_wait(barrier.at[slot])

                wait(k_used)
                plgpu.copy_gmem_to_smem(k_hbm.at[row, source, key_head], k_smem.at[slot], k_ready.at[slot])
                if kt_smem is not None:
                    plgpu.copy_gmem_to_smem(kt_hbm.at[row, key_head, :, source], kt_smem.at[slot], k_ready.at[slot])
                if marked:
                    plgpu.copy_gmem_to_smem(keys_hbm.at[row, source], keys_smem.at[slot], k_ready.at[slot])
                wait(v_used)
                v_from = v_hbm.at[row, source, key_head] if vt_hbm is None else vt_hbm.at[row, key_head, :, source]
                plgpu.copy_gmem_to_smem(v_from, v_smem.at[slot], v_ready.at[slot])

            lax.fori_loop(0, steps, one, None)
            drain(steps, stages, k_used, v_used)

        @pl.when(wg < number)
        def _multiply() -> None:
            if number > 1:
                dialect.set_max_registers(232, "increase")
            tile = chunk * number + wg
            head = group * each + lax.div(tile, jnp.int32(rules.block_q // ROWS))
            start = block * rules.block_q + lax.rem(tile, jnp.int32(rules.block_q // ROWS)) * ROWS
            mine = pl.ds(start, ROWS)
            plgpu.copy_gmem_to_smem(q_hbm.at[row, mine, head], q_smem.at[wg], own_ready.at[wg])
            plgpu.copy_gmem_to_smem(do_hbm.at[row, mine, head], do_smem.at[wg], own_ready.at[wg])
            plgpu.copy_gmem_to_smem(base_hbm.at[row, head, mine], base_smem.at[wg], own_ready.at[wg])
            plgpu.copy_gmem_to_smem(thr_hbm.at[row, head, mine], thr_smem.at[wg], own_ready.at[wg])
            if marked:
                plgpu.copy_gmem_to_smem(rows_hbm.at[row, mine], rows_smem.at[wg], own_ready.at[wg])
            plgpu.barrier_wait(own_ready.at[wg])
            shape = ROWS, step_size
            base, through = (
                lax.broadcast_in_dim(dialect.load(ref.at[wg], plgpu.Layout.WGMMA.reduce(1)), shape, [0])
                for ref in (base_smem, thr_smem)
            )

            def one(masked: bool, step: jax.Array, acc: jax.Array) -> jax.Array:
                slot = lax.rem(step, jnp.int32(stages))
                plgpu.barrier_wait(k_ready.at[slot])
                k = dialect.turn(k_smem.at[slot]) if kt_smem is None else kt_smem.at[slot]
                z, slope_of_cap = bend(product(q_smem.at[wg], k, shape), rules)
                plgpu.barrier_wait(v_ready.at[slot])
                v = dialect.turn(v_smem.at[slot]) if vt_hbm is None else v_smem.at[slot]
                slope = product(do_smem.at[wg], v, shape)
                plgpu.barrier_arrive(v_used.at[slot])
                weight = jnp.exp2(z - base)
                if masked:
                    marks = None
                    if marked:
                        mark = dialect.load(rows_smem.at[wg], plgpu.Layout.WGMMA.reduce(1))
                        other = dialect.load(keys_smem.at[slot], plgpu.Layout.WGMMA.reduce(0))
                        marks = lax.broadcast_in_dim(mark, shape, [0]), lax.broadcast_in_dim(other, shape, [1])
                    column, query = dialect.iota(shape, 1) + first(step), dialect.iota(shape, 0) + start
                    weight = jnp.where(visible(rules, keys, column, query, marks), weight, 0.0)
                slope = weight * (slope - through) * rules.scale
                slope = slope if slope_of_cap is None else slope * slope_of_cap
                staged = None if stage is None else stage.at[wg]
                acc = dialect.add_product(acc, slope.astype(dtype), k_smem.at[slot], staged)
                plgpu.barrier_arrive(k_used.at[slot])
                return acc

            acc = dialect.cast(jnp.zeros((ROWS, d), jnp.float32), plgpu.Layout.WGMMA)
            acc = lax.fori_loop(0, plain, lambda step, acc: one(False, step, acc), acc)
            acc = lax.fori_loop(plain, steps, lambda step, acc: one(True, step, acc), acc)
            q_smem[wg] = acc.astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(q_smem.at[wg], out_hbm.at[row, mine, head])
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
            plgpu.SMEM((number, ROWS), jnp.float32),
            plgpu.SMEM((number, ROWS), jnp.float32),
            plgpu.SMEM((stages, step_size, d), dtype, transforms=wide),
            plgpu.SMEM((stages, *((e, step_size) if dialect.transposed else (step_size, e))), dtype, transforms=tall),
            plgpu.SMEM((stages, d, step_size), dtype) if dialect.transposed else None,
            plgpu.SMEM((number, ROWS), jnp.int32) if marked else None,
            plgpu.SMEM((stages, step_size), jnp.int32) if marked else None,
            plgpu.SMEM((number, ROWS, step_size), dtype) if dialect.transposed else None,
        )
        barriers = (
            plgpu.Barrier(num_arrivals=4 + marked, num_barriers=number),
            plgpu.Barrier(num_arrivals=1 + marked + dialect.transposed, num_barriers=stages),
            plgpu.Barrier(num_arrivals=1, num_barriers=stages),
            plgpu.Barrier(num_arrivals=number, num_barriers=stages),
            plgpu.Barrier(num_arrivals=number, num_barriers=stages),
        )
        pl.run_scoped(lambda *scratch: kernel(tuple(operands), scratch), arrays, barriers, collective_axes="wg")

    plain_forms = tuple(a.transpose(0, 2, 3, 1) for a in (x.k, x.v)) if dialect.transposed else ()
    return compiled(
        entry,
        out_type=jax.ShapeDtypeStruct((batch, rows, heads, d), dtype),
        grid=(chunks * count, groups, batch),
        grid_names=("at", "group", "batch"),
        num_threads=number + 1,
        thread_name="wg",
        approximate=True,
        interpret=interpret,
    )(x.q, *slopes, x.k, x.v, *plain_forms, *lists, *((x.segments, x.key_segments) if marked else ()))
