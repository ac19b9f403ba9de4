"""rlx: say what a model should do, train it in the memory there is, change little, judge it soundly, ship it.

Each area is a module of pure functions over pytrees and is imported on first use, so
`import rlx` costs milliseconds and loads no TensorFlow, Ray, matplotlib, NumPyro or flax.

    import rlx

    y = rlx.weights.matmul(x, w)
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_AREAS = (
    "adapters",
    "align",
    "attention",
    "compress",
    "contracts",
    "export",
    "memory",
    "models",
    "quantize",
    "reversible",
    "run",
    "stats",
    "weights",
)


def __getattr__(name: str) -> ModuleType:
    if name in _AREAS:
        return importlib.import_module(f"rlx.{name}")
    raise AttributeError(f"module 'rlx' has no attribute {name!r}; its areas are {', '.join(_AREAS)}")


def __dir__() -> list[str]:
    return sorted([*_AREAS, "__version__"])
