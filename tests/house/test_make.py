"""The set-up of `make`, with a Python that only writes down what it is asked for: `.ci/setup.sh` decides the rest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Stands for a Python and for the one in the environment that it makes. `-c` is real, `-m` is written down.
FAKE = """#!/bin/sh
if [ "$1" = -c ]; then exec '{python}' "$@"; fi
echo "$2 $3" >> "$LOG"
case "$2 $3" in
"venv "*) if [ -n "${{NO_VENV:-}}" ]; then mkdir -p "$3"; exit 1; fi; target=$3 ;;
"virtualenv "*) [ -d "$PYTHONPATH" ] || exit 1; target=$4 ;;
"pip install") case "$*" in *--target*) mkdir -p "$6" ;; *) [ -z "${{NO_NETWORK:-}}" ] || exit 1 ;; esac; exit 0 ;;
esac
mkdir -p "$target/bin" && cp "$0" "$target/bin/python"
"""


class Checkout:
    """A folder with a space in its name that has what a set-up reads."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a b"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.root.mkdir()
        self.bin.mkdir()
        (self.root / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "setup.sh", self.root / ".ci" / "setup.sh")
        (self.root / "pyproject.toml").write_text("[project]\n")
        (self.root / "requirements.lock").write_text("jax==0.10.2\n")
        for tool in ("sh", "cat", "cksum", "rm", "mkdir", "mv", "cp", "basename"):
            (self.bin / tool).symlink_to(shutil.which(tool))

    def python(self, name: str, source: str = FAKE.format(python=sys.executable)) -> None:
        (self.bin / name).write_text(source)
        (self.bin / name).chmod(0o755)

    def setup(self, **environment: str) -> subprocess.CompletedProcess:
        """Nothing but the fakes on PATH, and no HOME: what it may have is what it is given."""
        return subprocess.run(
            ["sh", ".ci/setup.sh", ".venv"],
            cwd=self.root,
            env={"PATH": str(self.bin), "LOG": str(self.log), **environment},
            capture_output=True,
            text=True,
        )

    def asked(self) -> list[str]:
        """What Python was asked to run since the last time."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


MADE = ["venv .venv", "pip install", "pip install"]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    made.python("python3.11")
    return made


def test_the_second_time_does_nothing(checkout: Checkout) -> None:
    assert checkout.setup().returncode == 0
    assert checkout.asked() == MADE
    done = checkout.setup()
    assert (done.returncode, done.stdout, done.stderr, checkout.asked()) == (0, "", "", [])


def test_what_failed_half_way_starts_again(checkout: Checkout) -> None:
    assert checkout.setup(NO_NETWORK="1").returncode != 0
    assert not list((checkout.root / ".venv").glob("*stamp*"))
    checkout.asked()
    assert checkout.setup().returncode == 0
    assert checkout.asked() == MADE


@pytest.mark.parametrize("name", ["pyproject.toml", "requirements.lock"])
def test_what_it_was_made_from_has_changed(checkout: Checkout, name: str) -> None:
    checkout.setup()
    checkout.asked()
    (checkout.root / name).write_text("something else\n")
    assert checkout.setup().returncode == 0
    assert checkout.asked() == MADE


def test_a_folder_that_moved_is_made_again(checkout: Checkout) -> None:
    checkout.setup()
    checkout.asked()
    checkout.root = checkout.root.rename(checkout.root.with_name("c d"))
    assert checkout.setup().returncode == 0
    assert checkout.asked() == MADE


def test_an_environment_whose_python_has_gone_is_made_again(checkout: Checkout) -> None:
    checkout.setup()
    checkout.asked()
    (checkout.root / ".venv" / "bin" / "python").unlink()
    assert checkout.setup().returncode == 0
    assert checkout.asked() == MADE


def test_another_python_asked_for_is_another_environment_and_the_same_is_not(checkout: Checkout) -> None:
    checkout.setup()
    checkout.asked()
    assert checkout.setup(PYTHON="python3.11").returncode == 0
    assert checkout.asked() == []
    other = FAKE.format(python=sys.executable).replace("exec ", "case $2 in *print*) echo another; exit ;; esac\nexec ")
    checkout.python("other", other)
    assert checkout.setup(PYTHON="other").returncode == 0
    assert checkout.asked() == MADE


def test_a_python_without_venv_uses_virtualenv(checkout: Checkout) -> None:
    assert checkout.setup(NO_VENV="1").returncode == 0
    assert checkout.asked() == ["venv .venv", "pip install", "virtualenv --quiet", "pip install", "pip install"]


def test_a_shim_that_does_not_run_is_passed_over(checkout: Checkout) -> None:
    checkout.python("python3.11", "#!/bin/sh\nexit 127\n")
    checkout.python("python3.12")
    assert checkout.setup().returncode == 0
    assert checkout.asked() == MADE


def test_no_python_is_said_clearly(checkout: Checkout) -> None:
    checkout.python("python3.11", "#!/bin/sh\nexit 127\n")
    done = checkout.setup()
    assert done.returncode == 2
    assert "found none that runs.\nSay where one is: make PYTHON=/path/to/python3.11" in done.stderr
    assert checkout.asked() == []


def test_a_python_that_was_asked_for_is_not_replaced_by_another(checkout: Checkout) -> None:
    checkout.python("python3.12")
    done = checkout.setup(PYTHON="nowhere")
    assert done.returncode == 2
    assert "found none that runs at nowhere" in done.stderr
    assert checkout.asked() == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_help_is_the_default_and_fits_a_terminal() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    targets = {line.split()[0] for line in lines[1:]}
    assert {"demo", "test", "test-slow", "test-next", "check", "lint", "types", "docs", "lock", "clean"} <= targets
