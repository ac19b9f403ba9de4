"""A TensorFlow Lite file as a tree of objects, and back."""

from typing import Any

import numpy as np


def unpack(model: bytes) -> Any:
    """The `ModelT` of a flatbuffer; its buffers are written back at multiples of 16."""
    from ai_edge_litert import schema_py_generated as schema

    tree: Any = schema.ModelT.InitFromPackedBuf(model, 0)
    tree.buffers = [_aligned(schema, content_of(buffer)) for buffer in tree.buffers]
    return tree


def pack(tree: Any) -> bytes:
    """The flatbuffer of a `ModelT`."""
    import flatbuffers

    builder = flatbuffers.Builder(sum(len(content_of(buffer)) for buffer in tree.buffers) + 4096)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def append_buffer(tree: Any, content: bytes) -> int:
    """Add a buffer; its number."""
    from ai_edge_litert import schema_py_generated as schema

    tree.buffers.append(_aligned(schema, content))
    return len(tree.buffers) - 1


def content_of(buffer: Any) -> bytes:
    """The bytes of a buffer."""
    return b"" if buffer.data is None else np.asarray(buffer.data, np.uint8).tobytes()


def kind_of(code: Any) -> str:
    """The name of a builtin, of an `OperatorCodeT`: "FULLY_CONNECTED"."""
    from ai_edge_litert import schema_py_generated as schema

    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return next(name for name, value in vars(schema.BuiltinOperator).items() if value == number)


def _aligned(schema: Any, content: bytes) -> Any:
    """A buffer whose data start at a multiple of 16, as the schema asks; the generated code forgets it."""

    class Buffer(schema.BufferT):
        def Pack(self, builder: Any) -> Any:
            if self.data is not None:
                builder.Prep(16, len(self.data))
            return super().Pack(builder)

    buffer = Buffer()
    buffer.data = np.frombuffer(content, np.uint8) if content else None
    return buffer
