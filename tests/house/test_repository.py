"""What is committed is free of one machine's paths, and the locks are those of pyproject.toml."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PATHS = re.compile(r"(?<![\w.$~/-])/(?:root|home/\w+|Users/\w+|work|opt|mnt)/")


def committed() -> list[Path]:
    """What git has; in an unpacked archive, what is there and is not hidden or built."""
    if shutil.which("git"):
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
        names = [name for name in done.stdout.split("\0") if name]
        if names:
            return [ROOT / name for name in names if (ROOT / name).is_file()]
    tops = [ROOT / top for top in ("rlx", "kernels_pallas", "experiments", "tests", "docs", ".ci")]
    found = [path for top in tops for path in top.rglob("*") if path.is_file()]
    found = [path for path in found if not {"__pycache__", "_build", "api"} & set(path.relative_to(ROOT).parts)]
    return found + [path for path in ROOT.iterdir() if path.is_file()]


def on_one_machine(text: str) -> list[str]:
    """The lines that name a path of one machine."""
    return [line.strip()[:80] for line in text.splitlines() if PATHS.search(line)]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(project: dict) -> list[Requirement]:
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"].values()
    lines = [line for part in [project["project"]["dependencies"], *extras, *groups] for line in part]
    return [Requirement(line) for line in lines]


def test_no_file_names_a_path_of_one_machine() -> None:
    own = Path(__file__).resolve()
    texts = [path for path in committed() if path.suffix not in {".lock", ".png", ".svg"} and path.resolve() != own]
    found = {path.name: on_one_machine(path.read_text()) for path in texts}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert len(texts) > 100


@pytest.mark.parametrize(
    "line", ["open('/root/x')", "see /home/someone/data", "-I/x:/opt/lib/", '"/Users/me/x"', "`/work/x`"]
)
def test_a_planted_path_is_found(line: str) -> None:
    assert on_one_machine(line) == [line]


@pytest.mark.parametrize("line", ["./work/x", "https://x.org/home/y/", "a/opt/b", "$HOME/opt/x", "/path/to/python3.11"])
def test_a_path_of_no_machine_is_not(line: str) -> None:
    assert on_one_machine(line) == []


def test_every_dependency_has_a_lower_bound(project: dict) -> None:
    asked = requirements(project)
    assert len(asked) > 30
    assert [str(line) for line in asked if ">=" not in str(line.specifier)] == []


def test_the_extras_are_there(project: dict) -> None:
    extras = {"cuda12", "cuda13", "tpu", "data", "export", "bayes", "interop", "ray", "slurm", "minilm", "plot"}
    extras |= {"image", "onnx", "photos"}
    assert extras <= set(project["project"]["optional-dependencies"])


def test_the_lock_was_made_from_this_project(project: dict) -> None:
    """uv writes into the lock what it was asked for; a bound that changed without `make lock` differs."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    (own,) = [package for package in lock["package"] if package["name"] == project["project"]["name"]]
    metadata = own["metadata"]
    listed = [*metadata["requires-dist"], *(line for group in metadata["requires-dev"].values() for line in group)]
    locked = sorted((line["name"], str(Requirement(f"x{line['specifier']}").specifier)) for line in listed)
    assert locked == sorted((line.name.lower(), str(line.specifier)) for line in requirements(project))


def test_the_lock_satisfies_what_is_asked_for(project: dict) -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    versions: dict[str, list[str]] = {}
    for package in lock["package"]:
        versions.setdefault(package["name"], []).append(package.get("version", ""))
    for asked in requirements(project):
        assert any(version in asked.specifier for version in versions[asked.name.lower()]), str(asked)


def test_the_hashed_requirements_are_the_lock(project: dict) -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    pinned = {(package["name"], package["version"]) for package in lock["package"] if "version" in package}
    for name, least in (("requirements.lock", 100), ("requirements-docs.lock", 40)):
        text = (ROOT / name).read_text()
        lines = re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)
        assert len(lines) > least
        assert set(lines) <= pinned, name
        assert text.count("--hash=sha256:") >= len(lines)


def test_the_hashed_requirements_hold_every_dependency(project: dict) -> None:
    names = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    used = [
        project["project"]["dependencies"],
        *(extras[e] for e in ("data", "export", "plot", "interop", "image", "photos")),
    ]
    for line in [line for part in [*used, groups["test"], groups["lint"]] for line in part]:
        assert Requirement(line).name.lower() in names, line
