"""What is committed is free of one machine's paths, and the locks are those of pyproject.toml."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMITTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")[:-1]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(project: dict) -> list[str]:
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"].values()
    return [line for part in [project["project"]["dependencies"], *extras, *groups] for line in part]


@pytest.mark.skipif(not COMMITTED, reason="not a git checkout, such as an unpacked sdist")
def test_no_file_names_a_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.$~/-])/(?:root|home/\w+|work|opt|mnt)/")
    own = Path(__file__).relative_to(ROOT).as_posix()
    found = []
    for name in COMMITTED:
        if name == own or name.endswith((".lock", ".png", ".svg")):
            continue
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert found == []


def test_every_dependency_has_a_lower_bound(project: dict) -> None:
    lines = requirements(project)
    assert len(lines) > 30
    assert [line for line in lines if ">=" not in line] == []


def test_the_lock_satisfies_what_is_asked_for(project: dict) -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    versions: dict[str, list[tuple[int, ...]]] = {}
    for package in lock["package"]:
        if "version" in package:
            numbers = tuple(int(n) for n in re.findall(r"\d+", package["version"])[:3])
            versions.setdefault(package["name"], []).append(numbers)
    for line in requirements(project):
        name = re.match(r"[\w-]+", line).group().lower()
        least = tuple(int(n) for n in re.search(r">=([\d.]+)", line).group(1).split("."))
        assert any(version[: len(least)] >= least for version in versions[name]), line


def test_the_hashed_requirements_hold_every_locked_dependency(project: dict) -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert text.count("--hash=sha256:") > 500
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    used = [project["project"]["dependencies"], *(extras[e] for e in ("data", "export", "plot", "interop"))]
    for line in [line for part in [*used, groups["test"], groups["lint"]] for line in part]:
        name = re.match(r"[\w-]+", line).group().lower()
        assert re.search(rf"^{name}==", text, re.MULTILINE), name
