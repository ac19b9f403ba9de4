"""What differs between versions of Mosaic GPU, and between the compiled and the interpreted kernel."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu


class Dialect:
    """Calls that the interpreter does not know, or not in every version, by what it does know.

    Args:
      interpret: None for the compiled kernel, or the interpreter's parameters.

    The interpreted form is checked on every machine, the compiled one only where it is lowered and run.
    """

    def __init__(self, interpret: Any) -> None:
        self.transposed = interpret is not None
        """Whether the right side of a product is stored as `[K, N]`: the interpreter turns no reference."""
        self._plain = interpret is not None

    def turn(self, ref: Any) -> Any:
        """A reference `[N, K]` as `[K, N]`."""
        return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))

    def load(self, ref: Any, layout: Any) -> jax.Array:
        """All of a reference, in a layout."""
        if self._plain:
            return ref[...]
        index = () if jax.__version_info__ >= (0, 11) else ((),)
        return plgpu.load(ref, *index, layout=layout)

    def cast(self, x: jax.Array, layout: Any) -> jax.Array:
        """An array in a layout."""
        return x if self._plain else plgpu.layout_cast(x, layout)

    def iota(self, shape: tuple[int, ...], axis: int, layout: Any = plgpu.Layout.WGMMA) -> jax.Array:
        """Counting along an axis, in a layout, that of a product unless told otherwise."""
        if self._plain:
            return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout)

    def set_max_registers(self, count: int, action: Literal["increase", "decrease"]) -> None:
        """More registers for those who multiply, fewer for those who load."""
        if not self._plain:
            plgpu.set_max_registers(count, action=action)

    def add_product(
        self, acc: jax.Array, left: jax.Array, right: Any, stage: Any, meanwhile: Callable[[], None] = lambda: None
    ) -> jax.Array:
        """`acc + left @ right`, left in registers and right in shared memory; `meanwhile` runs while it multiplies.

        Args:
          acc: `[M, N]` float32.
          left: `[M, K]`.
          right: a reference `[K, N]`.
          stage: a reference `[M, K]` that the interpreter puts left in; unused where it is compiled.
          meanwhile: what need not wait.
        """
        if not self._plain:

            def product(ref: Any) -> None:
                plgpu.wgmma(ref, left, right)
                meanwhile()

            state: Any = pl.run_state(product)(plgpu.ACC.init(acc))
            return state

        stage[...] = left
        plgpu.commit_smem()

        def alone(ref: Any) -> jax.Array:
            plgpu.wgmma(ref, stage, right)
            plgpu.wgmma_wait(0)
            return ref[...]

        rows, columns = acc.shape
        found = acc + pl.run_scoped(alone, plgpu.ACC((rows, columns), acc.dtype))
        meanwhile()
        return found

    def transforms(self, depth: int, dtype: Any) -> tuple[Any, ...]:
        """How tiles of `depth` contiguous elements lie in shared memory."""
        if self._plain:
            return ()
        width = jnp.dtype(dtype).itemsize
        swizzle = plgpu.find_swizzle(depth * width * 8)
        return plgpu.TilingTransform((8, swizzle // width)), plgpu.SwizzleTransform(swizzle)


def compiled(
    body: Callable[..., None],
    *,
    interpret: Any,
    approximate: bool = False,
    barriers: bool = True,
    **options: Any,
) -> Callable[..., Any]:
    """`plgpu.kernel` by Lane semantics where it is compiled: the default differs between versions of jax.

    Args:
      body: of the kernel.
      interpret: None, or the interpreter's parameters.
      approximate: whether exponentials are those of the special function unit, to about 2 units in the last place.
      barriers: whether a warpgroup waits for its warps before and after every store to shared memory; False where
        `commit_smem` stands between what is stored and what is read, and between that and the next store.
      **options: of `plgpu.kernel`.
    """
    lane = plgpu.CompilerParams(
        lowering_semantics=plgpu.LoweringSemantics.Lane, approx_math=approximate, unsafe_no_auto_barriers=not barriers
    )
    if interpret is None:
        return plgpu.kernel(body, compiler_params=lane, **options)
    return plgpu.kernel(body, interpret=interpret, **options)
