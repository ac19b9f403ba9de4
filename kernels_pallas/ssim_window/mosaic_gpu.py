"""Mean SSIM as one Mosaic kernel for Hopper that reads every pixel about once and writes one number a program.

A program is one warpgroup and slides down a strip of one frame. A row is taken as its `W * C` numbers in a line, so
that the neighbour of a pixel in the same channel is C further, whatever C is; nothing is transposed. TMA brings
`rows` rows of both frames into shared memory as they are stored, `stages` ahead.

Down: a thread has running sums of the four moments (two means, that of a^2 + b^2, that of ab) for the `size - 1`
windows that are open in each of its columns. A row is added to all of them with its taps, and one window closes: 4 x
`size` multiply-adds a number and nothing read again. Sums move by one place as they are added to.

Across: what closed goes to shared memory (two steps deep, one barrier a step) in blocks of 8 numbers with one left
free, and each thread reads the blocks of its 8 neighbouring windows: element m of every block is an array of its own,
so that a shift along the row is another array and no data moves between threads, 8 + (size - 1) C reads for 8 windows
of a moment instead of 8 x `size`. The free number keeps the reads of a warp in different banks. The quotients are
added up in registers.

It is bound by multiply-adds in float32, 88 of about 150 instructions a number at 11 taps; by tensor cores (a product
with a banded matrix) they would cost more: squares and products of bytes take two half-precision parts each, taps two
and what lies between the passes two, and 11 of 80 entries of a tile's rows are not zero.

Stores need no barriers of their own: what is stored is read after `commit_smem`, which all four warps wait at, and
stored over two steps later, after the next one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from .config import LANES, OUTPUTS, Config
from .reference import Options, padded, quality

Moments = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
Sums = tuple[tuple[Moments, ...], ...]
"""Of the open windows, the first to close first, by groups of 128 columns."""


def forward(a: jax.Array, b: jax.Array, options: Options, config: Config, *, interpret: Any = None) -> jax.Array:
    """`reference` of `[N, H, W, C]`; `config.check` says for which."""
    a, b = (padded(x, options, (1, 2)) for x in (a, b))
    n, h, w, c = a.shape
    halo, reach = options.size - 1, (options.size - 1) * c
    rows, width, blocks, stages, steps = config.rows, config.width, config.blocks, config.stages, config.steps
    own_rows, own_columns = config.own(c, options.size)
    down, across = h - halo, w * c - reach  # windows
    bands, strips = -(-down // own_rows), -(-across // own_columns)
    taps = [float(tap) for tap in options.taps.astype("float32")]
    dialect, dtype = Dialect(interpret), a.dtype
    line, share = plgpu.Layout.WG_STRIDED((LANES,), vec_size=1), plgpu.Layout.WG_STRIDED((rows, blocks), vec_size=1)
    unit = 16 // dtype.itemsize  # a row begins at a multiple of 16 bytes
    tall, long = max(h, rows * steps), max(-(-w * c // unit) * unit, width)
    room = ((0, 0), (0, tall - h), (0, long - w * c))

    def kernel(a_hbm: Any, b_hbm: Any, out_hbm: Any) -> None:
        def scoped(a_smem: Any, b_smem: Any, m_smem: Any, loaded: Any) -> None:
            frame, band, strip = (lax.axis_index(name) for name in ("frame", "band", "strip"))
            top = jnp.minimum(band * own_rows, tall - rows * steps)  # the last may begin in the one before
            left = jnp.minimum(strip * own_columns, long - width)

            def load(step: Any) -> None:
                slot = lax.rem(step, jnp.int32(stages))
                here = pl.ds(top + step * rows, rows)
                for source, smem in ((a_hbm, a_smem), (b_hbm, b_smem)):
                    for i in range(config.columns):
                        part = source.at[frame, here, pl.ds(left + i * LANES, LANES)]
                        plgpu.copy_gmem_to_smem(part, smem.at[slot, i], loaded.at[slot])

            for step in range(min(stages, steps)):
                load(jnp.int32(step))

            def add_row(slot: jax.Array, i: int, r: int, open_: tuple[Moments, ...]) -> tuple[Any, Moments]:
                """One row into the windows of 128 columns: those still open, and the moments of those that close."""
                x, y = (smem[slot, i, r].astype(jnp.float32) - options.data_range / 2 for smem in (a_smem, b_smem))
                new = (x, y, x * x + y * y, x * y)
                *taken, opened = [tuple(tap * m for m in new) for tap in reversed(taps)]
                sums: list[Any] = [
                    tuple(s + t for s, t in zip(old, part, strict=True)) for old, part in zip(open_, taken, strict=True)
                ]
                return (*sums[1:], opened), sums[0]

            def windows(step: jax.Array, at: jax.Array) -> jax.Array:
                """The sum of the quotients of what closed in a step, by blocks."""

                def mean(q: int) -> list[jax.Array]:
                    def shifted(m: int) -> jax.Array:
                        block, place = divmod(m, OUTPUTS)
                        return dialect.load(m_smem.at[at, q, :, pl.ds(block, blocks), place], share)

                    values = [shifted(m) for m in range(OUTPUTS + reach)]
                    found = []
                    for j in range(OUTPUTS):
                        total = taps[0] * values[j]
                        for k, tap in enumerate(taps[1:], 1):
                            total = total + tap * values[j + k * c]
                        found.append(total)
                    return found

                row = dialect.iota((rows, blocks), 0, share) + (top + step * rows - halo)
                column = dialect.iota((rows, blocks), 1, share) * OUTPUTS + left
                first_row, first_column = band * own_rows, strip * own_columns
                inside = (row >= first_row) & (row < jnp.minimum(first_row + own_rows, down))
                inside &= column >= first_column - (OUTPUTS - 1)
                total = None
                for j, (x, y, square, product) in enumerate(zip(*(mean(q) for q in range(4)), strict=True)):
                    both = quality(x, y, square - x * x - y * y, product - x * y, options)
                    here = inside & (column >= first_column - j)
                    here &= column < jnp.minimum(first_column + own_columns, across) - j
                    both = jnp.where(here, both, 0.0)
                    total = both if total is None else total + both
                assert total is not None
                return total

            def one(step: jax.Array, sums: Sums, *, close: bool) -> Sums:
                slot, at = lax.rem(step, jnp.int32(stages)), lax.rem(step, jnp.int32(2))
                plgpu.barrier_wait(loaded.at[slot])
                left_open = list(sums)
                for r in range(rows):
                    for i in range(config.columns):
                        left_open[i], closed = add_row(slot, i, r, left_open[i])
                        if close:
                            mine = slice(i * LANES // OUTPUTS, (i + 1) * LANES // OUTPUTS)
                            for q, moment in enumerate(closed):
                                m_smem[at, q, r, mine, :OUTPUTS] = moment.reshape(-1, OUTPUTS)
                plgpu.commit_smem()  # every thread has read the slot and written what closed

                @pl.when(step + stages < steps)
                def _next() -> None:
                    load(step + stages)

                return tuple(left_open)

            def first(step: jax.Array, sums: Sums) -> Sums:
                return one(step, sums, close=False)

            def rest(step: jax.Array, state: tuple[Sums, jax.Array]) -> tuple[Sums, jax.Array]:
                sums = one(step, state[0], close=True)
                return sums, state[1] + windows(step, lax.rem(step, jnp.int32(2)))

            zero = dialect.cast(jnp.zeros(LANES, jnp.float32), line)
            sums: Sums = (((zero,) * 4,) * halo,) * config.columns
            sums = lax.fori_loop(0, halo // rows, first, sums)  # nothing whole closes before
            total = dialect.cast(jnp.zeros((rows, blocks), jnp.float32), share)
            _, total = lax.fori_loop(halo // rows, steps, rest, (sums, total))
            out_hbm[frame, band, strip] = jnp.sum(total)

        pl.run_scoped(
            scoped,
            *(plgpu.SMEM((stages, config.columns, rows, LANES), dtype) for _ in range(2)),
            plgpu.SMEM((2, 4, rows, config.room(c, options.size), OUTPUTS + 1), jnp.float32),
            plgpu.Barrier(num_arrivals=2 * config.columns, num_barriers=stages),
        )

    parts = compiled(
        kernel,
        out_type=jax.ShapeDtypeStruct((n, bands, strips), jnp.float32),
        grid=(n, bands, strips),
        grid_names=("frame", "band", "strip"),
        barriers=False,
        interpret=interpret,
    )(*(jnp.pad(x.reshape(n, h, w * c), room) for x in (a, b)))
    return jnp.sum(parts, axis=(1, 2)) / (down * across)
