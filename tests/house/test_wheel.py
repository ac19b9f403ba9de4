"""The wheel holds the two packages and nothing else, and works from a directory of its own."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rlx

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the network, by the backend that is locked with the tests."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = target.glob("*.whl")
    return built


def test_it_holds_rlx_and_kernels_pallas_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"rlx", "kernels_pallas", f"rlx-{rlx.__version__}.dist-info"}
    assert {"rlx/py.typed", "kernels_pallas/py.typed", "rlx/weights/_lowrank.py"} <= set(names)
    sources = {
        path.relative_to(ROOT).as_posix() for top in ("rlx", "kernels_pallas") for path in (ROOT / top).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources


def test_it_says_what_it_needs(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(f"rlx-{rlx.__version__}.dist-info/METADATA").decode()
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
    assert extras == {
        "cuda12",
        "cuda13",
        "tpu",
        "data",
        "export",
        "bayes",
        "interop",
        "ray",
        "slurm",
        "minilm",
        "plot",
        "parquet",
        "image",
        "onnx",
        "photos",
    }
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    assert all(">=" in line for line in needs), [line for line in needs if ">=" not in line]


def test_it_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Installed elsewhere, with the checkout off the path: the editable install must not stand in for it."""
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        subprocess.run([*command, str(tmp_path / "site"), str(wheel)], check=True, capture_output=True)
    else:  # uv makes environments without pip; a wheel without scripts is installed by unpacking it
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import sys\n"
        f"sys.path = [{str(tmp_path / 'site')!r}] + [p for p in sys.path if p and {str(ROOT)!r} != p]\n"
        "import rlx, kernels_pallas\n"
        f"assert rlx.__file__.startswith({str(tmp_path)!r}), rlx.__file__\n"
        "import jax.numpy as jnp\n"
        "for area in rlx._AREAS:\n    getattr(rlx, area)\n"
        "print(rlx.weights.matmul(jnp.ones(2), jnp.ones((3, 2))).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[2.0, 2.0, 2.0]\n", done.stderr


def test_one_version_is_said_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == rlx.__version__
    assert f"\nversion: {rlx.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {rlx.__version__}" in (ROOT / "CHANGELOG.md").read_text()
