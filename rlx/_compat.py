"""Every branch on a library's version and every touch of `jax.experimental`."""

from types import ModuleType

from kernels_pallas._vary import vary_together as vary_together


def jax2tf() -> ModuleType:
    """`jax.experimental.jax2tf`; it imports TensorFlow, so it is loaded on first use.

    Raises:
      ModuleNotFoundError: TensorFlow is missing; says which extra has it.
    """
    try:
        from jax.experimental import jax2tf as module
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("TFLite export needs TensorFlow: pip install 'rlx[export]'") from error
    return module
