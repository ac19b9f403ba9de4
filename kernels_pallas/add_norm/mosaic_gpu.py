"""add_norm, forward and backward, as Mosaic kernels for Hopper that read and write every row once.

Both are bound by memory. A program is one warpgroup and takes every P-th row: TMA brings rows into shared memory
`stages` ahead, a row lives in registers as `[D / 128, 128]`, its sums are reduced over the warpgroup, and results go
out by TMA two rows deep while the next row is computed. Up to four programs share a multiprocessor, so that one
reduces while another loads. Weight and bias stay in registers. Backward, slopes of weight and bias are summed in
registers over the rows of a program and written once a program; what is left to sum is `[P, D]`, in a fixed order.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas._mosaic import Dialect, compiled

from .config import LANES, Config
from .reference import AddNorm
from .xla import Options


def forward(
    x: jax.Array,
    residual: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    options: Options,
    config: Config,
    *,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """`xla.forward`; `config.check` says for which shapes and dtypes."""
    n, d = x.shape
    row, programs, stages = (d // LANES, LANES), min(config.programs, n), config.stages
    layer, dtype = options.kind == "layer", x.dtype
    dialect, layout = Dialect(interpret), _layout(row, x.dtype)
    weight = weight.astype(jnp.float32) + options.weight_offset
    bias = jnp.zeros(d, jnp.float32) if bias is None else bias.astype(jnp.float32)

    def kernel(
        x_hbm: Any, r_hbm: Any, w_hbm: Any, b_hbm: Any, y_hbm: Any, s_hbm: Any, mean_hbm: Any, rstd_hbm: Any
    ) -> None:
        def scoped(x_smem: Any, r_smem: Any, y_smem: Any, s_smem: Any, loaded: Any) -> None:
            program = lax.axis_index("program")
            count = lax.div(n - program + programs - 1, jnp.int32(programs))
            w, b = (dialect.load(ref, layout) for ref in (w_hbm, b_hbm))

            def load(index: jax.Array) -> None:
                slot, at = lax.rem(index, jnp.int32(stages)), program + index * programs
                plgpu.copy_gmem_to_smem(x_hbm.at[at], x_smem.at[slot], loaded.at[slot])
                plgpu.copy_gmem_to_smem(r_hbm.at[at], r_smem.at[slot], loaded.at[slot])

            lax.fori_loop(0, jnp.minimum(count, stages), lambda index, _: load(index), None)

            def one(index: jax.Array, _: None) -> None:
                slot, out, at = lax.rem(index, jnp.int32(stages)), lax.rem(index, 2), program + index * programs
                plgpu.barrier_wait(loaded.at[slot])
                left, right = (smem[slot].astype(jnp.float32) for smem in (x_smem, r_smem))
                total = (left - right if options.subtract else left + right).astype(dtype)
                s = total.astype(jnp.float32)
                if layer:
                    mean = jnp.sum(s) / d
                    mean_hbm[at] = mean
                    s = s - mean
                rstd = lax.rsqrt(jnp.sum(s * s) / d + options.eps)
                rstd_hbm[at] = rstd
                plgpu.wait_smem_to_gmem(2)  # all but the row before: this one takes the room of the one before that
                y_smem[out] = (s * rstd * w + b).astype(dtype)
                s_smem[out] = total
                plgpu.commit_smem()  # every thread has read the slot and written its results
                plgpu.copy_smem_to_gmem(y_smem.at[out], y_hbm.at[at])
                plgpu.copy_smem_to_gmem(s_smem.at[out], s_hbm.at[at])

                @pl.when(index + stages < count)
                def _next() -> None:
                    load(index + stages)

            lax.fori_loop(0, count, one, None)
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(
            scoped,
            *(plgpu.SMEM((stages, *row), dtype) for _ in range(2)),
            *(plgpu.SMEM((2, *row), dtype) for _ in range(2)),
            plgpu.Barrier(num_arrivals=2, num_barriers=stages),
        )

    rows = jax.ShapeDtypeStruct((n, *row), dtype)
    numbers = jax.ShapeDtypeStruct((n,), jnp.float32)
    normed, total, mean, rstd = compiled(
        kernel,
        out_type=(rows, rows, numbers, numbers),
        grid=(programs,),
        grid_names=("program",),
        interpret=interpret,
    )(x.reshape(n, *row), residual.reshape(n, *row), weight.reshape(row), bias.reshape(row))
    return normed.reshape(n, d), total.reshape(n, d), mean if layer else None, rstd


def backward(
    slopes: AddNorm,
    total: jax.Array,
    mean: jax.Array | None,
    rstd: jax.Array,
    weight: jax.Array,
    options: Options,
    config: Config,
    *,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`xla.backward`, the slope of the sum in the sum's dtype."""
    n, d = total.shape
    row, programs, stages = (d // LANES, LANES), min(config.programs, n), config.stages
    layer, dtype = mean is not None, total.dtype
    dialect, layout = Dialect(interpret), _layout(row, total.dtype)
    weight = weight.astype(jnp.float32) + options.weight_offset
    mean = jnp.zeros(n, jnp.float32) if mean is None else mean

    def kernel(
        g_hbm: Any, e_hbm: Any, s_hbm: Any, m_hbm: Any, r_hbm: Any, w_hbm: Any, out_hbm: Any, dw_hbm: Any, db_hbm: Any
    ) -> None:
        def scoped(g_smem: Any, e_smem: Any, s_smem: Any, out_smem: Any, loaded: Any) -> None:
            program = lax.axis_index("program")
            count = lax.div(n - program + programs - 1, jnp.int32(programs))
            w = dialect.load(w_hbm, layout)

            def load(index: jax.Array) -> None:
                slot, at = lax.rem(index, jnp.int32(stages)), program + index * programs
                for source, room in ((g_hbm, g_smem), (e_hbm, e_smem), (s_hbm, s_smem)):
                    plgpu.copy_gmem_to_smem(source.at[at], room.at[slot], loaded.at[slot])

            lax.fori_loop(0, jnp.minimum(count, stages), lambda index, _: load(index), None)

            def one(index: jax.Array, past: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                slot, out, at = lax.rem(index, jnp.int32(stages)), lax.rem(index, 2), program + index * programs
                plgpu.barrier_wait(loaded.at[slot])
                scale = r_hbm[at]
                slope, s = g_smem[slot].astype(jnp.float32), s_smem[slot].astype(jnp.float32)
                unit = (s - m_hbm[at]) * scale if layer else s * scale
                g = slope * w
                inside = g - unit * (jnp.sum(g * unit) / d)
                if layer:
                    inside = inside - jnp.sum(g) / d
                plgpu.wait_smem_to_gmem(1)
                out_smem[out] = (scale * inside + e_smem[slot].astype(jnp.float32)).astype(dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(out_smem.at[out], out_hbm.at[at])

                @pl.when(index + stages < count)
                def _next() -> None:
                    load(index + stages)

                return past[0] + slope * unit, past[1] + slope

            zero = w * 0.0
            to_weight, to_bias = lax.fori_loop(0, count, one, (zero, zero))
            dw_hbm[program] = to_weight
            db_hbm[program] = to_bias
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(
            scoped,
            *(plgpu.SMEM((stages, *row), dtype) for _ in range(3)),
            plgpu.SMEM((2, *row), dtype),
            plgpu.Barrier(num_arrivals=3, num_barriers=stages),
        )

    parts = jax.ShapeDtypeStruct((programs, *row), jnp.float32)
    cut = [a.astype(dtype).reshape(n, *row) for a in (*slopes, total)]
    slope, to_weight, to_bias = compiled(
        kernel,
        out_type=(jax.ShapeDtypeStruct((n, *row), dtype), parts, parts),
        grid=(programs,),
        grid_names=("program",),
        interpret=interpret,
    )(*cut, mean, rstd, weight.reshape(row))
    to_weight, to_bias = (jnp.sum(part.reshape(programs, d), axis=0) for part in (to_weight, to_bias))
    return slope.reshape(n, d), to_weight, to_bias


def _layout(row: tuple[int, int], dtype: Any) -> Any:
    """That of a row of this dtype in registers, eight bytes a thread at a time, which weight and bias take too."""
    vector = 8 // dtype.itemsize
    while row[0] % vector:
        vector //= 2
    return plgpu.Layout.WG_STRIDED(row, vec_size=vector)
