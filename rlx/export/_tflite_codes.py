"""Write integer codes and scales into a TensorFlow Lite file, verbatim."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

Codes = tuple[np.ndarray, np.ndarray, int]


def write_codes(model: bytes, used: Mapping[bytes, Codes]) -> tuple[bytes, dict[int, int]]:
    """Replace float constants that fully connected operations multiply by with the codes they stand for.

    Args:
      model: a TensorFlow Lite flatbuffer.
      used: by the bytes of the float32 constant `[out, in]`: int8 codes `[out, in]`, scales `[out]`, bits.

    Returns:
      The model with these constants as INT8, INT4 or INT2 tensors, and how many there are by bits.

    Raises:
      ValueError: a constant is not found as the weight of a fully connected operation.
    """
    if not used:
        return model, {}
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tree: Any = schema.ModelT.InitFromPackedBuf(model, 0)
    fully_connected = {
        index
        for index, code in enumerate(tree.operatorCodes)
        if max(code.builtinCode, code.deprecatedBuiltinCode) == schema.BuiltinOperator.FULLY_CONNECTED
    }
    found: set[bytes] = set()
    for graph in tree.subgraphs:
        written: dict[int, int] = {}
        for operation in graph.operators:
            if operation.opcodeIndex not in fully_connected:
                continue
            index = int(operation.inputs[1])
            content = _content(tree.buffers[graph.tensors[index].buffer])
            if content not in used:
                continue
            if index not in written:
                written[index] = _add_tensor(schema, tree, graph, graph.tensors[index], used[content])
            operation.inputs = np.array([operation.inputs[0], written[index], *operation.inputs[2:]], np.int32)
            operation.builtinOptions.asymmetricQuantizeInputs = True
            found.add(content)
    lost = [codes[0].shape for content, codes in used.items() if content not in found]
    if lost:
        shapes = ", ".join(str(shape) for shape in lost)
        raise ValueError(f"signatures: quantised weights {shapes} did not become fully connected operations")
    _drop_unused_constants(tree)
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output()), dict(Counter(used[content][2] for content in found))


def _content(buffer: Any) -> bytes:
    return b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()


def _add_tensor(schema: Any, tree: Any, graph: Any, old: Any, codes: Codes) -> int:
    integers, scale, bits = codes
    buffer = schema.BufferT()
    buffer.data = _packed(integers, bits)
    tree.buffers.append(buffer)
    quantization = schema.QuantizationParametersT()
    quantization.scale = scale.astype(np.float32)
    quantization.zeroPoint = np.zeros(len(scale), np.int64)
    quantization.quantizedDimension = 0
    tensor = schema.TensorT()
    tensor.shape, tensor.name, tensor.quantization = old.shape, old.name, quantization
    tensor.buffer = len(tree.buffers) - 1
    tensor.type = {8: schema.TensorType.INT8, 4: schema.TensorType.INT4, 2: schema.TensorType.INT2}[bits]
    tensor.hasRank = True
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _packed(integers: np.ndarray, bits: int) -> np.ndarray:
    """The codes in one run, without padding at the end of a row, the lowest bits first."""
    flat = integers.reshape(-1).view(np.uint8) & np.uint8(2**bits - 1)
    per_byte = 8 // bits
    groups = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    return np.bitwise_or.reduce(groups << shifts, axis=1).astype(np.uint8)


def _drop_unused_constants(tree: Any) -> None:
    """Empty the buffers of tensors that no operation reads any more."""
    kept: set[int] = set()
    for graph in tree.subgraphs:
        read = {int(i) for operation in graph.operators for i in operation.inputs} | {int(i) for i in graph.outputs}
        kept |= {graph.tensors[i].buffer for i in read if i >= 0}
    for metadata in tree.metadata or []:
        kept.add(metadata.buffer)
    for index, buffer in enumerate(tree.buffers):
        if index not in kept:
            buffer.data = None
