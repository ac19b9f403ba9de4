"""What an import costs and loads, in a fresh process."""

import json
import subprocess
import sys

import pytest

import rlx

HEAVY = ("tensorflow", "ray", "matplotlib", "numpyro", "torch", "tensorflow_datasets")


def loaded_by(statement: str) -> tuple[float, set[str]]:
    program = (
        "import json, sys, time\nstart = time.perf_counter()\n"
        f"{statement}\nprint(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_import_rlx_is_quick_and_light() -> None:
    seconds, modules = loaded_by("import rlx")
    assert seconds < 2
    assert not modules & {*HEAVY, "flax"}


@pytest.mark.parametrize("area", rlx._AREAS)
def test_an_area_loads_nothing_heavy(area: str) -> None:
    _, modules = loaded_by(f"import rlx.{area}")
    assert not modules & set(HEAVY)


def test_help_does_not_import_jax() -> None:
    program = (
        "import sys\nsys.argv = ['align', '--help']\nfrom experiments import align\n"
        "try:\n    align.parse()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--lm-steps" in done.stdout


def test_an_unknown_area_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'rlx' has no attribute 'nothing'; its areas are adapters, align"):
        rlx.nothing  # noqa: B018
