"""Put integer codes and scales in the place of float inputs of a TensorFlow Lite file, verbatim."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._tflite_tree import append_buffer, content_of, kind_of
from ._tflite_weights import Codes

# The version of FULLY_CONNECTED that knows float activations, low-bit weights and a scale for each output:
# an interpreter too old for it refuses the file instead of computing something else.
_FULLY_CONNECTED_VERSION = 12
_DEQUANTIZE_VERSION = 6


def write_codes(tree: Any, weights: Mapping[str, Mapping[str, Codes]]) -> dict[str, int]:
    """Turn inputs into constants, in place.

    Args:
      tree: a `ModelT`.
      weights: by signature and by name of an input of it, the codes that take its place: INT8, INT4
        or INT2 constants that fully connected operations multiply by (through a DEQUANTIZE where
        activations stay float).

    Returns:
      The bits of each, by the name of its tensor. A weight of several signatures is stored once.

    Raises:
      ValueError: an input is used by something else than a product.
    """
    from ai_edge_litert import schema_py_generated as schema

    writer = _Writer(schema, tree)
    for definition in tree.signatureDefs:
        named = weights[definition.signatureKey.decode()]
        graph = tree.subgraphs[definition.subgraphIndex]
        inputs = {entry.name.decode(): int(entry.tensorIndex) for entry in definition.inputs or []}
        removed = {inputs[name] for name in named}
        for name, codes in named.items():
            writer.replace(graph, inputs[name], codes)
        definition.inputs = [entry for entry in definition.inputs or [] if int(entry.tensorIndex) not in removed]
        graph.inputs = np.array([i for i in graph.inputs if int(i) not in removed], np.int32)
    return writer.written


class _Writer:
    def __init__(self, schema: Any, tree: Any) -> None:
        self.schema, self.tree = schema, tree
        self.written: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._buffers = {c: i for i, buffer in reversed(list(enumerate(tree.buffers))) if (c := content_of(buffer))}

    def replace(self, graph: Any, index: int, codes: Codes) -> None:
        """Make the float input at `index` a constant."""
        products = self._products(graph, index, codes)
        if not products:
            return  # the result of the product is not used
        if not codes.dynamic:
            products, index = [], self._dequantized(graph, index)
        tensor = graph.tensors[index]
        tensor.buffer = self._buffer(pack_run(codes.integers, codes.bits))
        types = self.schema.TensorType
        tensor.type = {8: types.INT8, 4: types.INT4, 2: types.INT2}[codes.bits]
        tensor.quantization = self.schema.QuantizationParametersT()
        tensor.quantization.scale = codes.scale
        tensor.quantization.zeroPoint = np.zeros(len(codes.scale), np.int64)
        tensor.quantization.quantizedDimension = 0
        tensor.name = self._name(tensor.buffer, codes)
        for operation in products:
            operation.builtinOptions.asymmetricQuantizeInputs = True
            code = self.tree.operatorCodes[operation.opcodeIndex]
            code.version = max(code.version, _FULLY_CONNECTED_VERSION)

    def _products(self, graph: Any, index: int, codes: Codes) -> list[Any]:
        products = []
        for operation in graph.operators:
            places = [place for place, i in enumerate(operation.inputs) if int(i) == index]
            kind = kind_of(self.tree.operatorCodes[operation.opcodeIndex])
            if places and (kind != "FULLY_CONNECTED" or places != [1]):
                hint = ": it is inside a loop; unroll it" if kind == "WHILE" else ""
                shape = list(codes.integers.shape)
                raise ValueError(f"signatures: a quantised weight {shape} is used by {kind}, not as a product{hint}")
            if places:
                products.append(operation)
        return products

    def _dequantized(self, graph: Any, index: int) -> int:
        """Have the tensor at `index` computed from a new one, whose place is returned."""
        number = self.schema.BuiltinOperator.DEQUANTIZE
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = _DEQUANTIZE_VERSION
        self.tree.operatorCodes.append(code)
        new = self.schema.TensorT()
        new.shape, new.hasRank = graph.tensors[index].shape, True
        graph.tensors.append(new)
        operation = self.schema.OperatorT()
        operation.opcodeIndex = len(self.tree.operatorCodes) - 1
        operation.inputs = np.array([len(graph.tensors) - 1], np.int32)
        operation.outputs = np.array([index], np.int32)
        operation.builtinOptionsType = self.schema.BuiltinOptions.DequantizeOptions
        operation.builtinOptions = self.schema.DequantizeOptionsT()
        graph.operators.insert(0, operation)
        return len(graph.tensors) - 1

    def _buffer(self, content: bytes) -> int:
        if content not in self._buffers:
            self._buffers[content] = append_buffer(self.tree, content)
        return self._buffers[content]

    def _name(self, buffer: int, codes: Codes) -> bytes:
        out, inputs = codes.integers.shape
        name = self._names.setdefault(buffer, f"quantized{len(self._names)}_{out}x{inputs}")
        self.written[name] = codes.bits
        return name.encode()


def pack_run(integers: np.ndarray, bits: int) -> bytes:
    """The codes in one run, without padding at the end of a row, the lowest bits first."""
    flat = np.ascontiguousarray(integers).reshape(-1).view(np.uint8) & np.uint8(2**bits - 1)
    per_byte = 8 // bits
    groups = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    return np.bitwise_or.reduce(groups << shifts, axis=1).astype(np.uint8).tobytes()
