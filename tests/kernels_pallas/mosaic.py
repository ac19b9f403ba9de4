"""Mosaic kernels without a GPU: interpreted with a search for races, and lowered to CUDA."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu


def interpreter() -> Any:
    """The interpreter's parameters, private before jax 0.11."""
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams(detect_races=True)
    from jax._src.pallas.mosaic_gpu.interpret import params

    return params.InterpretGPUParams(detect_races=True)


def lowered(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> str:
    """The program for CUDA, as text."""
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
