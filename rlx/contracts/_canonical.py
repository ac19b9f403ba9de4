"""What a function computes, as text: no variable names, no addresses, no library version."""

import dataclasses
import enum
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# calls that only group equations, and where their body is
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
CUSTOM_GRADIENTS = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
# parameters that say where or how, not what; a scan's shapes say already which of its inputs are carried
_SILENT = {"sharding", "out_sharding", "name", "debug_info", "weak_type", "linear", "unroll", "_split_transpose"}
_SILENT |= {"num_carry", "num_consts", "ft_in", "ft_out"}


class _Equation(NamedTuple):
    text: str
    inputs: tuple[Any, ...]
    outputs: tuple[str, ...]


def body_of(equation: Any) -> ClosedJaxpr | None:
    """The jaxpr of an equation that is only a call, else None."""
    key = _CALLS.get(equation.primitive.name)
    if key is None or key not in equation.params:
        return None
    inner = equation.params[key]
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


def canonical(closed: ClosedJaxpr, names: Sequence[str] = ()) -> str:
    """A jaxpr as text: one line an equation that an output needs, in the order that the outputs ask for them.

    Calls are inlined, variables are numbered, constants are their sha256, parameters that are None or only place data
    are left out.

    Args:
      closed: the jaxpr.
      names: of its inputs; their positions if not given.

    Raises:
      ValueError: a parameter can only be told by its memory address.
    """
    graph: list[_Equation] = []
    inputs = [("input", name) for name in (names or [str(i) for i in range(len(closed.jaxpr.invars))])]
    outputs = _flatten(closed.jaxpr, closed.consts, inputs, graph)
    number: dict[int, int] = {}
    lines: list[str] = []
    stack = [(node, False) for node in reversed(outputs)]
    while stack:
        node, ready = stack.pop()
        if node[0] != "equation" or node[1] in number:
            continue
        equation = graph[node[1]]
        if not ready:
            stack.append((node, True))
            stack.extend((source, False) for source in reversed(equation.inputs))
            continue
        number[node[1]] = len(number)
        arguments = " ".join(_reference(source, number) for source in equation.inputs)
        lines.append(f"%{number[node[1]]}:{','.join(equation.outputs)} = {equation.text} {arguments}")
    types = {name: _aval(var.aval) for (_, name), var in zip(inputs, closed.jaxpr.invars, strict=True)}
    used = sorted({source[1] for node in [*number] for source in graph[node].inputs if source[0] == "input"})
    used = sorted({*used, *(node[1] for node in outputs if node[0] == "input")})
    head = " ".join(f"{name}:{types[name]}" for name in used)
    return "\n".join([f"({head})", *lines, "return " + " ".join(_reference(node, number) for node in outputs)])


def has_custom_gradient(jaxpr: Jaxpr) -> bool:
    """Whether a gradient rule that somebody wrote is called anywhere inside."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in CUSTOM_GRADIENTS or any(has_custom_gradient(j) for j in subjaxprs(equation)):
            return True
    return False


def subjaxprs(equation: Any) -> list[Jaxpr]:
    """Every jaxpr among an equation's parameters."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def _flatten(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[Any], graph: list[_Equation]) -> list[Any]:
    known: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {var: ("const", _array(value)) for var, value in zip(jaxpr.constvars, consts, strict=True)}

    def read(atom: Any) -> Any:
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return ("const", _array(atom.val, aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        sources = tuple(read(atom) for atom in equation.invars)
        body = body_of(equation)
        if body is not None:
            outputs = _flatten(body.jaxpr, body.consts, sources[len(sources) - len(body.jaxpr.invars) :], graph)
        elif _is_identity(equation):
            outputs = [sources[0]]
        else:
            avals = tuple(_aval(var.aval) for var in equation.outvars)
            graph.append(_Equation(_equation_text(equation), sources, avals))
            outputs = [("equation", len(graph) - 1, i) for i in range(len(avals))]
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_identity(equation: Any) -> bool:
    if equation.primitive.name in ("copy", "copy_p"):
        return True
    same = equation.primitive.name == "convert_element_type"
    return same and equation.invars[0].aval.dtype == equation.outvars[0].aval.dtype


def _reference(node: Any, number: Mapping[int, int]) -> str:
    if node[0] == "equation":
        return f"%{number[node[1]]}.{node[2]}"
    return f"{node[0]}:{node[1]}"


def _equation_text(equation: Any) -> str:
    shown = []
    for key, value in sorted(equation.params.items()):
        if key in _SILENT or value is None:
            continue
        try:
            shown.append(f"{key}={_value(value)}")
        except ValueError as error:
            raise ValueError(f"primitive {equation.primitive.name}, parameter {key}: {error}") from error
    return f"{equation.primitive.name}[{';'.join(shown)}]"


def _value(value: Any) -> str:
    match value:
        case bool() | int() | float() | str() | None:
            return value.name if isinstance(value, enum.Enum) else repr(value)
        case enum.Enum():
            return f"{type(value).__name__}.{value.name}"
        case ClosedJaxpr():
            return "{" + canonical(value) + "}"
        case Jaxpr():
            opened = value.replace(constvars=[], invars=[*value.constvars, *value.invars])
            return "{" + canonical(ClosedJaxpr(opened, ())) + "}"
        case np.dtype():
            return value.name
        case type():
            return np.dtype(value).name if issubclass(value, np.generic) else value.__name__
        case np.ndarray() | np.generic() | jax.Array():
            return _array(value)
        case tuple() | list():
            kind = type(value).__name__ if hasattr(value, "_fields") else ""
            return f"{kind}({','.join(_value(item) for item in value)})"
        case frozenset() | set():
            return f"{{{','.join(sorted(_value(item) for item in value))}}}"
        case Mapping():
            return f"{{{','.join(sorted(f'{_value(k)}:{_value(v)}' for k, v in value.items()))}}}"
    if dataclasses.is_dataclass(value):
        fields = ",".join(f"{f.name}={_value(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({fields})"
    text = repr(value)
    if "0x" in text or callable(value):
        raise ValueError(f"{type(value).__name__} has no text but its memory address")
    return text


def _array(value: Any, dtype: Any = None) -> str:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key<{jax.random.key_impl(value)}>{_array(jax.random.key_data(value))}"
    array = np.asarray(value, dtype)
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype.name}[{','.join(map(str, array.shape))}]sha256:{content}"


def _aval(aval: Any) -> str:
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]" if hasattr(aval, "shape") else str(aval)
