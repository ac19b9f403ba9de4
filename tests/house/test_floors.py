"""An import goes down only: the floors of the house, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = [
    {"kernels_pallas"},
    {
        "rlx._checks",
        "rlx._tree",
        "rlx._compat",
        "rlx._names",
        "rlx._numerics",
        "rlx._safetensors",
        "rlx._symbolic",
        "rlx.weights",
    },
    {
        *("rlx.contracts", "rlx.align", "rlx.reversible", "rlx.memory", "rlx.attention", "rlx.compress"),
        *("rlx.adapters", "rlx.retrieval", "rlx.video", "rlx.stats", "rlx.plan", "rlx.quantize"),
    },
    {"rlx.models", "rlx.export"},
    {"rlx.run", "rlx.sweep", "rlx.evals"},
    {"experiments"},
]
SIDEWAYS = {("rlx.adapters", "rlx.retrieval"), ("rlx.compress", "rlx.attention"), ("rlx.align", "rlx.contracts")}
# On floor 1 the private modules are below weights; models and exporters may use each other's floor freely.
SHARED = {"rlx._checks", "rlx._tree", "rlx._compat", "rlx._names", "rlx._numerics", "rlx._safetensors", "rlx._symbolic"}
# Kernels are below rlx/_compat.py, and Pallas has no other name.
PALLAS = "jax.experimental.pallas"


def room(module: str) -> str | None:
    """The room that a module is in: `rlx.weights._lowrank` is in `rlx.weights`."""
    parts = module.split(".")
    if parts[0] in ("kernels_pallas", "experiments"):
        return parts[0]
    if parts[0] == "rlx" and len(parts) > 1 and parts[1] != "__version__":  # a string that any room may read
        return ".".join(parts[:2])
    return None


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imported(tree: ast.AST, module: str, is_package: bool) -> list[str]:
    """Every module that a source imports: relative ones resolved, those inside functions and those by a string too.

    An attribute counts (`rlx.models` loads `rlx.models`, `jax.experimental.pallas` is used without an import of
    its own).
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = module.split(".")
                kept = own[: len(own) - node.level + is_package]
                base = ".".join([*kept, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("rlx.", "jax.")):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found += [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return sorted(set(found))


def problems(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What a source imports that it must not."""
    own = room(module)
    found = []
    for name in imported(ast.parse(source), module, is_package):
        other = room(name)
        if name.startswith("jax._src"):
            found.append(f"{module}: {name} is private to jax")
        kernel = own == "kernels_pallas" and name.startswith(PALLAS)
        if name.startswith("jax.experimental") and module != "rlx._compat" and not kernel:
            found.append(f"{module}: {name} belongs in rlx/_compat.py")
        if own is None or other is None or other == own:
            continue
        if other not in set().union(*FLOORS):
            found.append(f"{module}: {name} is in a room that has no floor")
        elif floor(other) > floor(own):
            found.append(f"{module}: {name} is a floor up")
        elif floor(other) == floor(own) == 2 and (own, other) not in SIDEWAYS:
            found.append(f"{module}: {name} is across the floor")
        elif own in SHARED and other not in SHARED and floor(other) == floor(own):
            found.append(f"{module}: {name} is above the modules that everything shares")
    return found


def sources() -> list[tuple[Path, str]]:
    found = []
    for top in ("rlx", "kernels_pallas", "experiments"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((path, ".".join(parts[:-1] if parts[-1] == "__init__" else parts)))
    return found


def test_every_import_goes_down() -> None:
    checked = [
        problem
        for path, module in sources()
        if module != "rlx"
        for problem in problems(path.read_text(), module, is_package=path.name == "__init__.py")
    ]
    assert checked == []
    assert len(sources()) > 30


def test_every_area_that_exists_has_a_floor() -> None:
    areas = {f"rlx.{path.name}" for path in (ROOT / "rlx").iterdir() if (path / "__init__.py").exists()}
    assert areas <= set().union(*FLOORS)


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("rlx.weights._x", "from rlx.adapters import lora", "a floor up"),
        ("rlx.weights._x", "from rlx import models", "a floor up"),
        ("rlx.weights._x", "def f():\n    from ..run import Run", "a floor up"),
        ("rlx.adapters._x", "import rlx.contracts", "across the floor"),
        ("rlx.contracts._x", "from rlx import align", "across the floor"),
        ("kernels_pallas.op.api", "from rlx._checks import check_shapes", "a floor up"),
        ("rlx._checks", "from rlx.weights import matmul", "above the modules that everything shares"),
        ("rlx.stats._x", "from jax._src import core", "private to jax"),
        ("rlx.stats._x", "from jax.experimental import sparse", "belongs in rlx/_compat.py"),
        ("rlx.stats._x", "import jax\nf = jax.experimental.sparse.f", "belongs in rlx/_compat.py"),
        ("rlx.stats._x", "import jax\nf = jax._src.core.f", "private to jax"),
        ("kernels_pallas.op.api", "from jax.experimental import sparse", "belongs in rlx/_compat.py"),
        ("rlx.stats._x", "import rlx\ndef f():\n    return rlx.models.decoder", "a floor up"),
        ("rlx.stats._x", "import importlib\nm = importlib.import_module('rlx.run')", "a floor up"),
        ("rlx.stats._x", "from rlx.nowhere import x", "has no floor"),
    ],
)
def test_a_planted_import_is_found(module: str, source: str, message: str) -> None:
    assert any(message in problem for problem in problems(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rlx.align._x", "from rlx.contracts import compile"),
        ("rlx.run._x", "from ._y import z"),
        ("rlx._compat", "from jax.experimental import jax2tf"),
        ("kernels_pallas.op.mosaic_gpu", "from jax.experimental import pallas as pl"),
        ("kernels_pallas.op.mosaic_gpu", "from jax.experimental.pallas import mosaic_gpu as plgpu"),
        ("experiments.align", "from rlx import run, models"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    assert problems(source, module) == []
