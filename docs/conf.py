"""Sphinx: prose in MyST, one API page an area, written from what the area exports."""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import rlx

project = "rlx"
author = "The rlx authors"
release = rlx.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"rlx {release}"
exclude_patterns = ["_build"]
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_use_ivar = True
default_role = "code"
suppress_warnings = ["ref.python"]
# Types of other libraries: their own pages are not reachable while this builds.
nitpick_ignore_regex = [(r"py:.*", r"(jax|jaxlib|collections|pathlib|numpy|typing|optax|orbax)\..*")]

HERE = Path(__file__).parent


def public(module: object) -> list[str]:
    """What a package re-exports with `import x as x`: functions, classes and submodules of its own."""
    names = []
    for name in dir(module):
        value = getattr(module, name)
        own = getattr(value, "__module__", getattr(value, "__name__", ""))
        if not name.startswith("_") and str(own).startswith(("rlx", "kernels_pallas")):
            names.append(name)
    return names


def write_api() -> None:
    """One page an area; a public name without a docstring stops the build."""
    target = HERE / "api"
    target.mkdir(exist_ok=True)
    pages = [f"rlx.{area}" for area in rlx._AREAS] + ["rlx.models.decoder", "rlx.contracts.aggregate", "kernels_pallas"]
    for page in pages:
        module = importlib.import_module(page)
        lines = [page, "=" * len(page), "", f".. automodule:: {page}", "   :no-members:", ""]
        for name in public(module):
            value = getattr(module, name)
            if not getattr(value, "__doc__", None):
                raise RuntimeError(f"{page}.{name} has no docstring")
            if isinstance(value, type):
                lines += [f".. autoclass:: {page}.{name}", "   :members:", ""]
            elif callable(value):
                lines += [f".. autofunction:: {page}.{name}", ""]
        (target / f"{page}.rst").write_text("\n".join(lines))
    toc = "\n".join(f"   {page}" for page in sorted(pages))
    (target / "index.rst").write_text(f"API\n===\n\n.. toctree::\n   :maxdepth: 1\n\n{toc}\n")


def mark_code(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """An indented paragraph of a docstring is code; reStructuredText wants a `::` before it."""
    out: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside and out and not out[-1].strip():
            out += ["::", ""]
        inside = indented or (inside and not line.strip())
        out.append(line)
    lines[:] = out


def setup(app: object) -> None:
    """Sphinx's hook."""
    app.connect("autodoc-process-docstring", mark_code, priority=100)


write_api()
