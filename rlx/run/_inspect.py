"""Look at a run from outside: is it what was written, and how far is it."""

import fcntl
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._events import ChainReport, verify_events
from ._exits import DataError
from ._files import canonical, strict_loads
from ._metrics import read_metrics
from ._progress import duration


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `verify` or `status` found: `ok`, and lines of text to print, at most 80 columns."""

    ok: bool
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(part for line in self.lines for part in _wrap(line, "     "))


def _chain(directory: Path) -> ChainReport | None:
    path = directory / "events.jsonl"
    return verify_events(path) if path.is_file() else None


def _of(chain: ChainReport, kind: str) -> list[dict[str, Any]]:
    return [entry["data"] for entry in chain.entries if entry["kind"] == kind]


def verify(directory: str | Path, *, head: str | None = None) -> Inspection:
    """Check all of a run against its sha256s: config, events, metrics, results, checkpoints; nothing is changed.

    Args:
      directory: a run's directory.
      head: a sha256 of an event, kept elsewhere, that must be in the chain.
    Returns:
      Inspection; `ok` is False when anything is not what was written.
    """
    directory = Path(directory)
    chain = _chain(directory)
    if chain is None:
        return Inspection(ok=False, lines=(f"not a run, it has no events.jsonl: {directory}",))
    lines: list[str] = []
    bad = 0

    def say(good: bool, what: str, detail: str) -> None:
        nonlocal bad
        bad += not good
        lines.append(f"{'ok ' if good else 'BAD'}  {what}: {detail}")

    say(chain.ok, "events.jsonl", f"{chain.count} entries, head {chain.head[:16]}" if chain.ok else chain.reason)
    if chain.ok and chain.reason:
        lines.append(f"     events.jsonl: {chain.reason}, cut at the next start")
    heads = {entry["sha256"] for entry in chain.entries} | {"0" * 64}
    if head is not None and head not in heads:
        say(False, "events.jsonl", f"the known head {head[:16]} is not in it: its end was cut")
    say(*_check_config(directory, chain))
    try:
        say(True, "metrics.jsonl", f"{len(read_metrics(directory))} lines")
    except DataError as error:
        say(False, "metrics.jsonl", str(error).removeprefix(f"{directory}/metrics.jsonl, "))
    results = {data["name"]: data for data in _of(chain, "result")}
    for name, data in results.items():
        for file, digest in {f"results/{name}.json": data["sha256"], **data["files"]}.items():
            path = directory / file
            good = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest
            say(good, file, "as written" if good else "not what was written" if path.is_file() else "missing")
    saved = {(data["stage"], data["step"]): data["sha256"] for data in _of(chain, "save")}
    for folder in _stages(directory):
        for report in _verify_checkpoints(folder):
            where = f"ckpt/{folder.name}/{report.step}"
            extra = report.manifest.get("extra", {})
            wanted = saved.get((folder.name, report.step))
            if not report.ok:
                say(False, where, report.reason)
            elif extra.get("events", "0" * 64) not in heads:
                say(False, where, "the event that it was saved after is gone: events.jsonl was cut")
            elif wanted != report.manifest["tree_sha256"]:
                say(False, where, "not the state that events.jsonl says was saved")
            else:
                say(
                    True,
                    where,
                    f"{len(report.manifest['leaves'])} leaves, sha256 {report.manifest['tree_sha256'][:16]}",
                )
    lines.append(f"{directory.name}: " + (f"{bad} of {len(lines)} checks failed" if bad else "all is what was written"))
    return Inspection(ok=not bad, lines=tuple(lines))


def _check_config(directory: Path, chain: ChainReport) -> tuple[bool, str, str]:
    try:
        config = strict_loads((directory / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        return False, "config.json", str(error)
    digest = hashlib.sha256(canonical(config)).hexdigest()
    starts = _of(chain, "start")
    good = bool(starts) and starts[0]["config_sha256"] == digest
    return good, "config.json", f"sha256 {digest[:16]}" if good else "not the config that the run was begun with"


def _stages(directory: Path) -> list[Path]:
    folder = directory / "ckpt"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.endswith(".damaged"))


def _verify_checkpoints(folder: Path) -> list[Any]:
    from ._checkpoint import verify_checkpoints

    return verify_checkpoints(folder)


def running(directory: str | Path) -> bool:
    """Whether a process holds the run's directory."""
    try:
        descriptor = os.open(Path(directory) / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def status(directory: str | Path) -> Inspection:
    """How far a run is; reads no checkpoint and loads no jax.

    Returns:
      Inspection; `ok` when the run is running, or has ended well.
    """
    directory = Path(directory)
    chain = _chain(directory)
    if chain is None:
        return Inspection(ok=False, lines=(f"not a run, it has no events.jsonl: {directory}",))
    alive = running(directory)
    last = chain.entries[-1] if chain.entries else {"kind": "", "data": {}}
    if alive:
        good, state = True, "running"
    elif last["kind"] != "end":
        good, state = False, "killed; start it again to go on"
    else:
        code = last["data"]["code"]
        good = code == 0
        state = "finished" if good else f"stopped with exit code {code}"
    lines = [f"{directory.name}: {state}"]
    if last["kind"] == "end" and last["data"]["reason"] and not alive:
        lines.append(f"  {last['data']['reason']}")
    lines += _stage_lines(directory, chain)
    rollbacks, damaged = len(_of(chain, "rollback")), len(_of(chain, "checkpoint-damaged"))
    starts = len(_of(chain, "start"))
    lines.append(f"  starts {starts}  rollbacks {rollbacks}  damaged checkpoints {damaged}")
    newest = max((path.stat().st_mtime for path in directory.glob("*.jsonl")), default=None)
    if newest is not None:
        lines.append(f"  last written {duration(max(0.0, time.time() - newest))} ago")
    if not chain.ok:
        good = False
        lines.append(f"  events.jsonl is broken: {chain.reason}")
    return Inspection(ok=good, lines=tuple(lines))


def _stage_lines(directory: Path, chain: ChainReport) -> list[str]:
    totals = {data["stage"]: data["steps"] for data in _of(chain, "stage")}
    done = {data["stage"]: data for data in _of(chain, "stage-done")}
    try:
        newest = {line["stage"]: line for line in read_metrics(directory)}
    except DataError as error:
        return [f"  metrics.jsonl is broken: {error}"]
    lines = []
    width = max((len(name) for name in totals), default=0)
    for name, total in totals.items():
        line = newest.get(name, {})
        at = total if name in done else line.get("step", 0)
        head = f"  {name:<{width}}  {at}/{total}  {100 * at // total:>3}%"
        if name in done:
            head += f"  {duration(done[name]['seconds'])}"
        shown = [f"{k} {v:.4g}" for k, v in line.items() if k not in ("stage", "step", "time") and _is_number(v)]
        lines.append(f"{head}  {' '.join(shown)}".rstrip())
    for data in _of(chain, "result"):
        lines.append(f"  {data['name']:<{width}}  computed in {duration(data['seconds'])}")
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wrap(text: str, indent: str) -> list[str]:
    import textwrap

    if len(text) <= 80:
        return [text]
    return textwrap.wrap(text, 80, subsequent_indent=indent, break_on_hyphens=False, replace_whitespace=False)


def read_result(directory: str | Path, name: str) -> Any:
    """A result that `Run.result` stored."""
    return json.loads((Path(directory) / "results" / f"{name}.json").read_bytes())
