"""The forward pass as one Mosaic kernel for Hopper.

A program has 64 rows of one list for each of its warpgroups that multiply: queries of one head, or of neighbouring
heads that share the list (blocks of queries that are no multiple of 64 are packed, heads under one another, by XLA).
One more warpgroup walks the list and loads keys and values by TMA, a step of `columns` keys at a time, `stages` ahead;
keys and values signal apart, so that the scores of a step start before its values are there. Scores go from the
accumulator through the softmax into the registers of the second product; nothing goes back to shared memory. Two
warpgroups take turns: one has the tensor cores while the other has the exponential unit.

Lists come in order (`lists.ordered`): steps of blocks that need no mask run in a loop without one, then those that
do. Long lists come last by number in causal attention, and start first.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from .config import ROWS, Config
from .lists import Lists, finer, ordered
from .mosaic_gpu_backward import backward
from .packing import Packed, pack, unpack
from .reference import BlockSparseAttention
from .rules import Inputs, Rules

_FAR = -1e30  # a score that counts for nothing, and whose differences stay finite
_LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class Mosaic:
    """`reference` for half precision on Hopper; `config.check` says for which shapes.

    Attributes:
      config: how its work is cut.
      interpret: None, or the interpreter's parameters.
    """

    config: Config
    interpret: Any = None

    @property
    def has_backward(self) -> bool:
        """Whether the gradients are computed here too."""
        return self.config.back_groups > 0

    def backward(
        self, x: Inputs, lists: Lists, rules: Rules, to_y: jax.Array, logsumexp: jax.Array, through: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The gradients of queries, keys and values."""
        return backward(x, lists, rules, self.config, to_y, logsumexp, through, self.interpret)

    def __call__(self, x: Inputs, lists: Lists, rules: Rules) -> BlockSparseAttention:
        """The output and the log-sum-exp of lists in order."""
        keys = x.k.shape[1]
        step = self.config.columns
        if step < rules.block_k:  # a block of keys is several steps
            index, rules = finer(lists, rules.block_k // step), replace(rules, block_k=step)
            lists = ordered(index, rules, x.q.shape[1], keys, x.segments, x.key_segments)
        out = unpack(_launch(pack(x, rules), lists, rules, self.config, keys, self.interpret), x, rules)
        if x.sinks is None:
            return out
        logsumexp = jnp.logaddexp(out.logsumexp, x.sinks.astype(jnp.float32)[None, None])
        share = jnp.exp(out.logsumexp - jnp.where(logsumexp == -jnp.inf, 0, logsumexp))
        return BlockSparseAttention((out.y.astype(jnp.float32) * share[..., None]).astype(out.y.dtype), logsumexp)


def _launch(
    x: Packed, lists: Lists, rules: Rules, config: Config, keys: int, interpret: Any
) -> tuple[jax.Array, jax.Array]:
    """The output `[B, rows, heads, E]` and the log-sum-exp `[B, heads, rows]`."""
    dialect, dtype = Dialect(interpret), x.q.dtype
    batch, rows, heads, d = x.q.shape
    shared, e = x.v.shape[2:]
    count = rows // x.block  # blocks of queries
    groups = heads if lists.index.shape[1] not in (1, shared) else shared
    each = heads // groups  # heads of a list
    chunks = each * x.block // ROWS // config.groups
    together = config.columns // rules.block_k
    last = x.k.shape[1] // rules.block_k - 1
    index = jnp.pad(lists.index, ((0, 0),) * 3 + ((0, -lists.index.shape[-1] % together),), constant_values=last + 1)
    marked = x.segments is not None

    def kernel(hbm: tuple[Any, ...], scratch: tuple[Any, ...]) -> None:
        q_hbm, k_hbm, v_hbm, index_hbm, full_hbm, seen_hbm, rows_hbm, keys_hbm, y_hbm, lse_hbm = hbm
        (q_smem, k_smem, v_smem, y_smem, lse_smem, stage, rows_smem, keys_smem), barriers = scratch
        q_ready, (k_ready, v_ready), (k_used, v_used), turn = barriers
        wg, at = lax.axis_index("wg"), lax.axis_index("at")
        group, row = lax.axis_index("group"), lax.axis_index("batch")
        chunk, block = lax.rem(at, jnp.int32(chunks)), count - 1 - lax.div(at, jnp.int32(chunks))
        own = row if index.shape[0] > 1 else 0, group if index.shape[1] > 1 else 0, block
        key_head = lax.div(group, jnp.int32(groups // shared))
        seen = seen_hbm[own]
        steps = lax.div(seen + (together - 1), jnp.int32(together))
        plain = lax.div(full_hbm[own], jnp.int32(together))

        def listed(step: jax.Array, i: int) -> jax.Array:
            return index_hbm[(*own, step * together + i)]

        @pl.when(wg == config.groups)
        def _load() -> None:
            if config.groups > 1:
                dialect.set_max_registers(40, "decrease")

            def one(step: jax.Array, _: None) -> None:
                slot = lax.rem(step, jnp.int32(config.stages))
                places = [jnp.minimum(listed(step, i), last) * rules.block_k for i in range(together)]

                def wait(barrier: Any) -> None:
                    @pl.when(step >= config.stages)
                    def _wait() -> None:
                        plgpu.barrier_wait(barrier.at[slot])

                wait(k_used)
                for i, place in enumerate(places):
                    source, target = pl.ds(place, rules.block_k), pl.ds(i * rules.block_k, rules.block_k)
                    if dialect.transposed:
                        k_from, k_to = k_hbm.at[row, key_head, :, source], k_smem.at[slot, :, target]
                    else:
                        k_from, k_to = k_hbm.at[row, source, key_head], k_smem.at[slot, target]
                    plgpu.copy_gmem_to_smem(k_from, k_to, k_ready.at[slot])
                    if marked:
                        plgpu.copy_gmem_to_smem(keys_hbm.at[row, source], keys_smem.at[slot, target], k_ready.at[slot])
                wait(v_used)
                for i, place in enumerate(places):
                    source, target = pl.ds(place, rules.block_k), pl.ds(i * rules.block_k, rules.block_k)
                    plgpu.copy_gmem_to_smem(v_hbm.at[row, source, key_head], v_smem.at[slot, target], v_ready.at[slot])

            lax.fori_loop(0, steps, one, None)

            def drain(step: jax.Array, _: None) -> None:
                slot = lax.rem(step, jnp.int32(config.stages))
                plgpu.barrier_wait(k_used.at[slot])
                plgpu.barrier_wait(v_used.at[slot])

            lax.fori_loop(jnp.maximum(steps - config.stages, 0), steps, drain, None)

        @pl.when(wg < config.groups)
        def _multiply() -> None:
            if config.groups > 1:
                dialect.set_max_registers(232, "increase")
            tile = chunk * config.groups + wg
            head = group * each + lax.div(tile, jnp.int32(x.block // ROWS))
            inside = lax.rem(tile, jnp.int32(x.block // ROWS)) * ROWS
            mine = pl.ds(block * x.block + inside, ROWS)
            plgpu.copy_gmem_to_smem(q_hbm.at[row, mine, head], q_smem.at[wg], q_ready.at[wg])
            if marked:
                plgpu.copy_gmem_to_smem(rows_hbm.at[row, mine], rows_smem.at[wg], q_ready.at[wg])
            plgpu.barrier_wait(q_ready.at[wg])
            segment = dialect.load(rows_smem.at[wg], plgpu.Layout.WGMMA.reduce(1)) if marked else None

            def take_turn() -> None:
                if config.groups > 1:
                    plgpu.barrier_arrive(turn)
                    plgpu.barrier_wait(turn)

            def visible(step: jax.Array, slot: jax.Array) -> jax.Array:
                shape = ROWS, config.columns
                place, query = dialect.iota(shape, 1), dialect.iota(shape, 0) + inside
                if x.block != rules.block_q:
                    query = lax.rem(query, jnp.int32(rules.block_q))
                query = query + block * rules.block_q + rules.offset
                column = place + listed(step, 0) * rules.block_k
                for i in range(1, together):
                    shifted = place + (listed(step, i) - i) * rules.block_k
                    column = jnp.where(place >= i * rules.block_k, shifted, column)
                seen = column < keys
                if rules.causal:
                    seen = seen & (column <= query)
                if rules.window is not None:
                    seen = seen & (column < query + rules.window) & (column > query - rules.window)
                if segment is not None:
                    other = dialect.load(keys_smem.at[slot], plgpu.Layout.WGMMA.reduce(0))
                    equal = lax.broadcast_in_dim(segment, shape, [0]) == lax.broadcast_in_dim(other, shape, [1])
                    seen = seen & equal
                return seen

            def one(masked: bool, step: jax.Array, past: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                acc, most, total = past
                slot = lax.rem(step, jnp.int32(config.stages))

                def scores(ref: Any) -> jax.Array:
                    k = k_smem.at[slot] if dialect.transposed else dialect.turn(k_smem.at[slot])
                    plgpu.wgmma(ref, q_smem.at[wg], k)
                    take_turn()
                    return ref[...]

                z = pl.run_scoped(scores, plgpu.ACC((ROWS, config.columns), jnp.float32))
                seen = visible(step, slot) if masked else None
                plgpu.barrier_arrive(k_used.at[slot])
                if rules.softcap is None:
                    z = z * (rules.scale * _LOG2E)
                else:
                    z = jnp.tanh(z * (rules.scale / rules.softcap)) * (rules.softcap * _LOG2E)
                if seen is not None:
                    z = jnp.where(seen, z, _FAR)
                highest = jnp.maximum(most, jnp.max(z, axis=1))
                share = jnp.exp2(z - lax.broadcast_in_dim(highest, z.shape, [0]))
                if seen is not None:
                    share = jnp.where(seen, share, 0.0)
                kept = jnp.exp2(most - highest)
                total = total * kept + jnp.sum(share, axis=1)
                acc = acc * lax.broadcast_in_dim(kept, acc.shape, [0])
                share = share.astype(dtype)
                acc, highest, total, share = lax.optimization_barrier((acc, highest, total, share))
                if config.groups > 1:
                    plgpu.barrier_arrive(turn)
                plgpu.barrier_wait(v_ready.at[slot])
                if config.groups > 1:
                    plgpu.barrier_wait(turn)

                def await_next() -> None:
                    @pl.when(step + 1 < steps)
                    def _wait() -> None:
                        plgpu.barrier_wait(k_ready.at[lax.rem(step + 1, jnp.int32(config.stages))])

                staged = None if stage is None else stage.at[wg]
                acc = dialect.add_product(acc, share, v_smem.at[slot], staged, await_next)
                plgpu.barrier_arrive(v_used.at[slot])
                return acc, highest, total

            @pl.when(steps > 0)
            def _first() -> None:
                plgpu.barrier_wait(k_ready.at[0])

            zero = dialect.cast(jnp.zeros((ROWS,), jnp.float32), plgpu.Layout.WGMMA.reduce(1))
            past = dialect.cast(jnp.zeros((ROWS, e), jnp.float32), plgpu.Layout.WGMMA), zero + _FAR, zero
            pl.when(wg == 1)(take_turn)
            past = lax.fori_loop(0, plain, lambda step, past: one(False, step, past), past)
            acc, most, total = lax.fori_loop(plain, steps, lambda step, past: one(True, step, past), past)
            pl.when(wg == 0)(take_turn)
            nothing = total == 0.0
            inverse = 1.0 / jnp.where(nothing, 1.0, total)
            logsumexp = jnp.where(nothing, -jnp.inf, most * (1 / _LOG2E) - jnp.log(inverse))
            out_smem = q_smem if y_smem is None else y_smem
            out_smem[wg] = (acc * lax.broadcast_in_dim(inverse, acc.shape, [0])).astype(dtype)
            lse_smem[wg] = logsumexp
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(out_smem.at[wg], y_hbm.at[row, mine, head])
            plgpu.copy_smem_to_gmem(lse_smem.at[wg], lse_hbm.at[row, head, mine])
            plgpu.wait_smem_to_gmem(0)

    def entry(*refs: Any) -> None:
        operands = list(refs)
        if not marked:
            operands[6:6] = [None, None]
        q_tiles, v_tiles = dialect.transforms(d, dtype), dialect.transforms(e, dtype)
        k_shape = (d, config.columns) if dialect.transposed else (config.columns, d)
        number, stages, columns = config.groups, config.stages, config.columns
        arrays = (
            plgpu.SMEM((number, ROWS, d), dtype, transforms=q_tiles),
            plgpu.SMEM((stages, *k_shape), dtype, transforms=q_tiles),
            plgpu.SMEM((stages, columns, e), dtype, transforms=v_tiles),
            None if d == e else plgpu.SMEM((number, ROWS, e), dtype, transforms=v_tiles),  # else where q was
            plgpu.SMEM((number, ROWS), jnp.float32),
            plgpu.SMEM((number, ROWS, columns), dtype) if dialect.transposed else None,
            plgpu.SMEM((number, ROWS), jnp.int32) if marked else None,
            plgpu.SMEM((stages, columns), jnp.int32) if marked else None,
        )
        barriers = (
            plgpu.Barrier(num_arrivals=1 + marked, num_barriers=number),
            (
                plgpu.Barrier(num_arrivals=together * (1 + marked), num_barriers=stages),
                plgpu.Barrier(num_arrivals=together, num_barriers=stages),
            ),
            (plgpu.Barrier(num_arrivals=number, num_barriers=stages),) * 2,
            plgpu.Barrier(num_arrivals=number),
        )
        pl.run_scoped(
            lambda *scratch: kernel(tuple(operands), scratch),
            arrays,
            barriers,
            collective_axes="wg",
        )

    k = x.k.transpose(0, 2, 3, 1) if dialect.transposed else x.k
    marks = (x.segments, x.key_segments) if marked else ()
    return compiled(
        entry,
        out_type=(
            jax.ShapeDtypeStruct((batch, rows, heads, e), dtype),
            jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32),
        ),
        grid=(chunks * count, groups, batch),
        grid_names=("at", "group", "batch"),
        num_threads=config.groups + 1,
        thread_name="wg",
        approximate=True,
        interpret=interpret,
    )(x.q, k, x.v, index, lists.full, lists.seen, *marks)
