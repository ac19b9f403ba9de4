"""`python -m rlx.contracts`: what it prints and the codes that it exits with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlx.contracts import AuditLog, digest, load
from rlx.contracts.__main__ import main

BRIEF = Path(__file__).parents[2] / "docs/examples/brief.toml"


@pytest.fixture
def other(tmp_path):
    """The example with a tighter limit."""
    path = tmp_path / "other.toml"
    path.write_text(BRIEF.read_text().replace("limit = 0.1", "limit = 0.05"))
    return path


def test_check(capsys, tmp_path):
    assert main(["check", str(BRIEF)]) == 0
    printed = capsys.readouterr().out
    assert "PROVED   range:length: interval [0, 1], declared [0, 1]" in printed
    assert printed.rstrip().endswith("16 proved, 0 refuted, 0 unknown")
    assert max(map(len, printed.splitlines())) <= 80
    bad = tmp_path / "bad.toml"
    bad.write_text(BRIEF.read_text().replace("ranking = [0, 1]", "ranking = [1, 0]"))
    assert main(["check", str(bad)]) == 1
    assert "REFUTED  test:short and calm beats long and harsh" in capsys.readouterr().out


def test_unknown_is_a_failure_only_if_asked(capsys, tmp_path):
    path = tmp_path / "loose.toml"
    path.write_text(BRIEF.read_text().replace("editor = -1.1", "editor = -0.9"))
    assert main(["check", str(path)]) == 0
    assert main(["check", "--strict", str(path)]) == 1
    assert "UNKNOWN  disagreement" in capsys.readouterr().out


def test_hash(capsys):
    assert main(["hash", str(BRIEF)]) == 0
    assert capsys.readouterr().out.strip() == digest(load(BRIEF))


def test_diff(capsys, other):
    assert main(["diff", str(BRIEF), str(BRIEF)]) == 0
    assert capsys.readouterr().out == "no change\n"
    assert main(["diff", str(BRIEF), str(other)]) == 1
    assert capsys.readouterr().out.startswith("tightening constraint Chance(toxic > 0.5) <= 0.05: limit 0.1 -> 0.05")


def test_sign_and_verify(capsys, tmp_path, other):
    key, signature = tmp_path / "key.pem", tmp_path / "brief.sig"
    assert main(["new-key", str(key)]) == 0
    assert main(["sign", str(BRIEF), "--key", str(key), "--out", str(signature)]) == 0
    trusted = ["--signature", str(signature), "--public", f"{key}.pub"]
    assert main(["verify-signature", str(BRIEF), *trusted]) == 0
    assert main(["verify-signature", str(other), *trusted]) == 1
    assert capsys.readouterr().out.endswith("NOT signed by this key\n")
    assert main(["new-key", str(key)]) == 2
    assert "not written over" in capsys.readouterr().err


def test_verify_log(capsys, tmp_path):
    path, checkpoint = tmp_path / "log.jsonl", tmp_path / "checkpoint.json"
    log = AuditLog(path)
    for i in range(5):
        log.append({"i": i})
    checkpoint.write_text(json.dumps(log.checkpoint()))
    assert main(["verify-log", str(path), "--checkpoint", str(checkpoint)]) == 0
    assert f"root {log.root()}" in capsys.readouterr().out
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]))
    assert main(["verify-log", str(path)]) == 0
    assert main(["verify-log", str(path), "--checkpoint", str(checkpoint)]) == 1
    assert "entry 4 (line 5): the log ends here, the checkpoint has 5 entries" in capsys.readouterr().out
    path.write_bytes(b"".join([*lines[:2], lines[2].replace(b":2", b":7", 1), *lines[3:]]))
    assert main(["verify-log", str(path), "--size", "5", "--root", log.root()]) == 1
    assert "entry 2 (line 3): its hash is not that of its content" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_card(capsys, tmp_path, suffix):
    out = tmp_path / f"card{suffix}"
    assert main(["card", str(BRIEF), "--out", str(out)]) == 0
    assert "brief and calm" in out.read_text()
    assert main(["card", str(BRIEF), "--out", str(tmp_path / "card.pdf")]) == 2


def test_contracts_of_python(capsys):
    assert main(["hash", "experiments.lipogram:contract"]) == 0
    assert len(capsys.readouterr().out.strip()) == 64


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("nowhere.toml", "No such file"),
        ("experiments.lipogram:nothing", "there is no 'nothing'"),
        ("experiments.lipogram:words", ""),
        ("no_module_of_this_name:x", "No module named"),
        ("experiments.lipogram:NEWLINE", "expected a Contract or a function that returns one, got int"),
    ],
)
def test_what_cannot_be_read_is_2(capsys, file, told):
    assert main(["check", file]) == 2
    assert told in capsys.readouterr().err


def test_a_bad_file_is_told_with_its_path(capsys, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(BRIEF.read_text() + "\n[extra]\n")
    assert main(["hash", str(path)]) == 2
    assert "bad.toml: $.extra: object contains unknown field" in capsys.readouterr().err


def test_as_a_command():
    done = subprocess.run([sys.executable, "-m", "rlx.contracts", "--help"], capture_output=True, text=True, check=True)
    for command in ("check", "hash", "diff", "card", "new-key", "sign", "verify-signature", "verify-log"):
        assert command in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert subprocess.run([sys.executable, "-m", "rlx.contracts"], capture_output=True, check=False).returncode == 2
