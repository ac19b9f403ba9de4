"""What a TensorFlow Lite file holds and how long its signatures take."""

import collections
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlx._checks import check_whole

from ._tflite_run import TFLite
from ._tflite_tree import content_of, kind_of, unpack

_WIDTH = 80


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One signature.

    Attributes:
      inputs, outputs: path (or name) in the exported function, dtype and shape of each array, in order.
      weight_bytes: of the constants that it reads, each buffer once; signatures may share them. The scales of
        quantised ones are not among them: they stand in the graph of each signature, 12 bytes an output.
      operations: how often each builtin stands in its graphs (those of loops and branches too).
      live_bytes: the most bytes of intermediate arrays, inputs and outputs that are needed at once, by the order of
        the graph. It bounds the interpreter's arena from below; LiteRT's Python interface does not tell the arena.
      median_ms, p90_ms: of one call through LiteRT on this machine.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    operations: dict[str, int]
    live_bytes: int
    median_ms: float
    p90_ms: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `report` found; `str` of it is a table of at most 80 columns.

    Attributes:
      path: the file.
      bytes: its size.
      weight_bytes: of all its constants.
      metadata: bytes of each entry of the metadata, the manifest's own left out.
      repeats: calls of each signature.
      threads: of the interpreter.
      signatures: by name.
    """

    path: Path
    bytes: int
    weight_bytes: int
    metadata: dict[str, int]
    repeats: int
    threads: int
    signatures: dict[str, Measured]

    def __str__(self) -> str:
        told = f"{self.path.name}: {self.bytes:,} bytes, {self.weight_bytes:,} of them constants"
        lines = [told, f"{self.repeats} calls each on this machine, threads: {self.threads}", ""]
        lines.append(f"{'signature':<24}{'constants':>14}{'live':>14}{'median ms':>14}{'90% ms':>14}")
        for name, one in self.signatures.items():
            lines.append(
                f"{_cut(name, 23):<24}{one.weight_bytes:>14,}{one.live_bytes:>14,}"
                f"{one.median_ms:>14.3f}{one.p90_ms:>14.3f}"
            )
        for name, one in self.signatures.items():
            counts = sorted(one.operations.items(), key=lambda pair: (-pair[1], pair[0]))
            lines += ["", name]
            lines += _filled("in", one.inputs)
            lines += _filled("out", one.outputs)
            lines += _filled("operations", [f"{kind} {count}" for kind, count in counts])
        if self.metadata:
            lines += ["", "metadata", *_filled("", [f"{name} {size:,} bytes" for name, size in self.metadata.items()])]
        return "\n".join(line[:_WIDTH].rstrip() for line in lines)


def report(path: str | Path, *, repeats: int = 50, threads: int = 1) -> Report:
    """Size and latency of each signature of a TensorFlow Lite file.

    Inputs are zeros; a graph without loops takes as long for any other. Two calls are not
    counted. What a phone's GPU or neural processor would take cannot be told from here.

    Args:
      path: the file, of rlx or not.
      repeats: calls of each signature.
      threads: of the interpreter.

    Returns:
      A `Report`.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: LiteRT is missing; says which extra has it.
      ValueError: it is not a TensorFlow Lite file, its metadata are damaged, or there is nothing to repeat.

    Example:
      >>> import jax, jax.numpy as jnp, os, tempfile
      >>> from rlx import export
      >>> signatures = {"sin": (jnp.sin, [jax.ShapeDtypeStruct((2, 3), jnp.float32)])}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     written = export.to_tflite(signatures, os.path.join(folder, "model.tflite"))
      ...     found = export.report(written.path, repeats=3)
      >>> found.signatures["sin"].operations, found.signatures["sin"].live_bytes
      ({'SIN': 1}, 48)
    """
    check_whole("repeats", repeats, 1)
    check_whole("threads", threads, 1)
    path = Path(path)
    content = path.read_bytes()
    model = TFLite(path, threads=threads)
    tree = unpack(content)
    manifest = model.manifest or {"signatures": {}, "metadata": {}}
    found = {}
    for definition in tree.signatureDefs or []:
        name = definition.signatureKey.decode()
        reads = _Reads(tree)
        reads.graph(int(definition.subgraphIndex))
        graph = tree.subgraphs[definition.subgraphIndex]
        details = model.details(name)
        said = manifest["signatures"].get(name, {"inputs": [], "outputs": []})
        seconds = _seconds(model, name, [np.zeros(shape, dtype) for _, shape, dtype in details[0]], repeats)
        found[name] = Measured(
            inputs=_described(details[0], said["inputs"]),
            outputs=_described(details[1], said["outputs"]),
            weight_bytes=sum(len(content_of(tree.buffers[i])) for i in reads.buffers),
            operations=dict(reads.operations),
            live_bytes=_live(tree, graph),
            median_ms=1000 * float(np.median(seconds)),
            p90_ms=1000 * float(np.quantile(seconds, 0.9)),
        )
    everything = _Reads(tree)
    for i in range(len(tree.subgraphs)):
        everything.graph(i)
    return Report(
        path=path,
        bytes=len(content),
        weight_bytes=sum(len(content_of(tree.buffers[i])) for i in everything.buffers),
        metadata={name: one["bytes"] for name, one in manifest["metadata"].items()},
        repeats=repeats,
        threads=threads,
        signatures=found,
    )


class _Reads:
    """The buffers and operations that a graph reaches, through loops, branches and calls."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.buffers: set[int] = set()
        self.operations: collections.Counter[str] = collections.Counter()
        self._seen: set[int] = set()

    def graph(self, index: int) -> None:
        if index in self._seen:
            return
        self._seen.add(index)
        graph = self.tree.subgraphs[index]
        for tensor in graph.tensors:
            if content_of(self.tree.buffers[tensor.buffer]):
                self.buffers.add(int(tensor.buffer))
        for operation in graph.operators or []:
            self.operations[kind_of(self.tree.operatorCodes[operation.opcodeIndex])] += 1
            for options in (operation.builtinOptions, operation.builtinOptions2):
                for field, value in vars(options).items() if options is not None else ():
                    if "ubgraph" in field and isinstance(value, (int, np.integer)) and value >= 0:
                        self.graph(int(value))


def _live(tree: Any, graph: Any) -> int:
    """Bytes of the arrays that are needed at once, at most, if each is freed after its last use."""
    steps = graph.operators or []
    last = {int(i): step for step, operation in enumerate(steps) for i in operation.inputs}
    last |= {int(i): len(steps) for i in graph.outputs}
    born: dict[int, int] = {int(i): -1 for i in graph.inputs}
    for step, operation in enumerate(steps):
        born |= {int(i): step for i in operation.outputs}
    begins: collections.Counter[int] = collections.Counter()
    ends: collections.Counter[int] = collections.Counter()
    for i, start in born.items():
        if i >= 0 and not content_of(tree.buffers[graph.tensors[i].buffer]):
            begins[start] += _bytes_of(graph.tensors[i])
            ends[last.get(i, start)] += _bytes_of(graph.tensors[i])
    most = now = 0
    for step in range(-1, len(steps)):  # what is read last at a step is still there in it
        now += begins[step]
        most = max(most, now)
        now -= ends[step]
    return most


def _bytes_of(tensor: Any) -> int:
    from ai_edge_litert import schema_py_generated as schema

    name = next(name for name, value in vars(schema.TensorType).items() if value == tensor.type)
    bits = {"INT2": 2, "INT4": 4, "BOOL": 8, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16}.get(name)
    bits = int("".join(filter(str.isdigit, name)) or 32) if bits is None else bits
    shape = [] if tensor.shape is None else tensor.shape
    return -(-int(np.prod(shape, dtype=np.int64)) * bits // 8)


def _seconds(model: TFLite, name: str, arrays: list[np.ndarray], repeats: int) -> np.ndarray:
    found = np.empty(repeats + 2)
    for i in range(len(found)):
        start = time.perf_counter()
        model(name, *arrays)
        found[i] = time.perf_counter() - start
    return found[2:]


def _described(details: list[Any], said: list[Any]) -> tuple[str, ...]:
    names = [one["path"] or one["name"] for one in said] or [name for name, _, _ in details]
    return tuple(
        f"{name} {dtype}[{', '.join(map(str, shape))}]" for name, (_, shape, dtype) in zip(names, details, strict=True)
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _filled(title: str, items: Any) -> list[str]:
    """Items after a title, on as many lines as they need."""
    lines, line = [], f"  {title:<11}"
    for number, item in enumerate(items):
        part = item + ("," if number < len(items) - 1 else "")
        if len(line) + len(part) + 1 > _WIDTH and line.strip() not in ("", title):
            lines.append(line.rstrip())
            line = " " * 13
        line += f"{part} "
    return [*lines, line.rstrip()]
