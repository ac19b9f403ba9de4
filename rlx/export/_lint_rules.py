"""Which operations of JAX TensorFlow Lite has no builtin for, and which it computes differently.

Every entry was converted by TensorFlow 2.21, run by LiteRT 2.3 and compared with JAX; tests/export/test_lint.py does
it again.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

Kind = Literal["no builtin", "differs"]


class Verdict(NamedTuple):
    """What is wrong with one operation: `kind`, `what` happens, and what to do `instead`."""

    kind: Kind
    what: str
    instead: str


_HOST = "do it on the host, before or after the graph"
_FACTORS = "factor the matrix on the host, or write the few steps that are needed"

_MISSING: dict[str, str] = {
    "top_k": "take argmax again and again, or do it on the host",
    "approx_top_k": "take argmax again and again, or do it on the host",
    "sort": "sort on the host; the greatest few are argmax again and again",
    "random_bits": "draw on the host and pass the numbers in",
    "random_seed": "draw on the host and pass the numbers in",
    "random_split": "draw on the host and pass the numbers in",
    "random_fold_in": "draw on the host and pass the numbers in",
    "threefry2x32": "draw on the host and pass the numbers in",
    "scatter-add": "multiply by a one-hot matrix: one_hot(ids).T @ updates",
    "scatter-mul": "write it as a select over a one-hot mask",
    "scatter-min": "write it as a select over a one-hot mask",
    "scatter-max": "write it as a select over a one-hot mask",
    "select_and_scatter_add": "export the function, not the gradient of its pooling",
    **dict.fromkeys(("cholesky", "qr", "svd", "eigh", "lu", "triangular_solve"), _FACTORS),
    **dict.fromkeys(("sinh", "cosh", "asin", "acos", "asinh", "acosh", "atanh"), "write it out with exp, log or sqrt"),
    "erf": "use erfc (1 - lax.erfc(x)), or tanh as in the approximate gelu",
    "nextafter": _HOST,
    "population_count": _HOST,
    "clz": _HOST,
    "shift_left": "multiply by a power of two",
    "reduce": "use the sum, product, least or greatest of jax.numpy",
    "reduce_xor": _HOST,
    "reduce_precision": "leave it out, or round by arithmetic",
    "cumlogsumexp": "take the cumulative sum of exponentials, shifted by their greatest",
    "complex": "keep the real and the imaginary part apart",
    "debug_print": "take it out of what is exported",
    "pure_callback": _HOST,
    "io_callback": _HOST,
}
_HALF = ("float16", "bfloat16")
_HALF_MOVES = ("convert_element_type", "reshape", "broadcast_in_dim", "squeeze", "expand_dims", "copy", "stop_gradient")
_NARROW = ("int8", "uint8", "int16", "uint16", "uint32")
_NARROW_MISSING = ("sub", "div", "max", "neg", "reduce_sum", "reduce_max", "cumsum")
_NARROW_MORE = {
    **dict.fromkeys(("add", "mul"), ("int8", "uint8", "uint16")),
    **dict.fromkeys(("lt", "le", "ge"), ("int8", "uint8", "uint16", "uint32")),
    "gt": _NARROW,
    "rem": ("uint8", "uint16", "uint32"),
    "iota": ("uint8",),
    "abs": ("int8",),
    "transpose": ("int16", "uint16", "uint32"),
    "argmax": ("int16", "uint16", "uint32"),
    "gather": ("uint16", "uint32"),
    "slice": ("int16", "uint16"),
    "concatenate": ("uint16",),
}


def judge(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    """The verdict on one equation of a jaxpr, or None.

    Args:
      equation: the equation.
      fixed: whether an operand is known when the file is written.
    """
    name = equation.primitive.name
    if name in _MISSING:
        return Verdict("no builtin", "TensorFlow Lite has no such operation", _MISSING[name])
    special = _SPECIAL.get(name)
    if special is not None and (found := special(equation, fixed)) is not None:
        return found
    return _dtypes(equation)


def _dtypes(equation: Any) -> Verdict | None:
    name = equation.primitive.name
    arrays = [v.aval for v in [*equation.invars, *equation.outvars] if hasattr(v.aval, "dtype")]
    dtypes = [str(aval.dtype) for aval in arrays]
    inner = any(isinstance(value, (Jaxpr, ClosedJaxpr)) for value in equation.params.values())
    half = next((d for d in dtypes if d in _HALF), None)
    if half and name not in _HALF_MOVES and not inner and "branches" not in equation.params:
        return Verdict("no builtin", f"there is no {name} of {half}", "compute in float32 and convert at the ends")
    for dtype in dtypes:
        if dtype in _NARROW and (name in _NARROW_MISSING or dtype in _NARROW_MORE.get(name, ())):
            return Verdict("no builtin", f"there is no {name} of {dtype}", "convert to int32 or float32 first")
    if name == "add" and any(d.startswith("complex") for d in dtypes):
        return Verdict("no builtin", "there is no sum of complex numbers", "keep the real and the imaginary part apart")
    return None


def _dot(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    left, right = equation.invars
    dtypes = [str(v.aval.dtype) for v in (left, right, equation.outvars[0])]
    if all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in (left, right)):
        return None
    if dtypes == ["int8", "int8", "int32"] and not (fixed(left) or fixed(right)):
        return None
    said = f"there is no product of {dtypes[0]} and {dtypes[1]} into {dtypes[2]}"
    said += " with a constant" if dtypes == ["int8", "int8", "int32"] else ""
    return Verdict("no builtin", said, "multiply float32, or give the weight as a weights.QuantizedWeight")


def _conv(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    if equation.params["batch_group_count"] != 1:
        return Verdict("no builtin", "there is no convolution with batch groups", "use feature_group_count")
    if not jnp.issubdtype(equation.invars[0].aval.dtype, jnp.inexact):
        return Verdict("no builtin", "there is no convolution of integers into integers", "convert to float32 first")
    dilation = equation.params["lhs_dilation"]
    if all(one == 1 for one in dilation):
        return None
    kernel = [equation.invars[1].aval.shape[i] for i in equation.params["dimension_numbers"].rhs_spec[2:]]
    instead = 'use padding="VALID" and cut the result, a kernel that the stride divides, or resize and convolve'
    pads = zip(kernel, dilation, equation.params["padding"], strict=True)
    doubtful = [(k + s - 2 == low + high) for k, s, (low, high) in pads if not _transposes(k, s, low, high)]
    if not doubtful:
        return None
    if all(doubtful):
        return Verdict("differs", "the converted transposed convolution has another padding, and often size", instead)
    return Verdict("no builtin", "there is no transposed convolution with this padding", instead)


def _transposes(kernel: int, stride: int, low: int, high: int) -> bool:
    """Whether TRANSPOSE_CONV knows this padding of one dim: VALID, or SAME where it is not mistaken for VALID."""
    valid = low == kernel - 1 and high in (kernel - 1, kernel - 1 + max(stride - kernel, 0))
    balanced = low == high or (low == high + 1 and low != kernel - 1)
    return valid or (low + high == kernel + stride - 2 and balanced and low <= kernel - 1)


def _gather(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    if equation.params["mode"] != jax.lax.GatherScatterMode.CLIP or fixed(equation.invars[1]):
        return None
    return Verdict(
        "differs",
        "the clamp is lost: an index outside stops the interpreter",
        'clip the indices yourself: x.at[jnp.clip(i, 0, n - 1)].get(mode="promise_in_bounds")',
    )


def _fft(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    lengths = equation.params["fft_lengths"]
    powers = all(length & (length - 1) == 0 for length in lengths)
    if equation.params["fft_type"] == jax.lax.FftType.RFFT and len(lengths) <= 2 and powers:
        return None
    return Verdict(
        "no builtin",
        "there is no Fourier transform but the real one, of one or two dims, of lengths that are powers of two",
        "pad to a power of two and use rfft, or multiply by the matrix of the transform",
    )


def _round(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    if equation.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return None
    return Verdict("no builtin", "there is no rounding of ties away from zero", "use jnp.round: ties to even")


def _bits(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    boolean = equation.invars[0].aval.dtype == jnp.bool_
    name = equation.primitive.name
    if boolean != (name == "xor"):
        return None
    instead = "use !=" if boolean else "use arithmetic"
    return Verdict("no builtin", f"there is no {name} of {equation.invars[0].aval.dtype}", instead)


def _rem(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    if jnp.issubdtype(equation.invars[0].aval.dtype, jnp.unsignedinteger):
        return None
    return Verdict("differs", "the remainder has the sign of the divisor, not of the dividend", "use jnp.mod")


def _shift(equation: Any, fixed: Callable[[Any], bool]) -> Verdict | None:
    dtype = equation.invars[0].aval.dtype
    arithmetic = equation.primitive.name == "shift_right_arithmetic"
    if jnp.issubdtype(dtype, jnp.unsignedinteger) != arithmetic:
        return None
    does = "zeros come in, not the highest bit" if arithmetic else "the sign comes in, not zeros"
    return Verdict("differs", f"{does}: the shift is the other one for {dtype}", "use // by a power of two")


_SPECIAL: dict[str, Callable[[Any, Callable[[Any], bool]], Verdict | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "fft": _fft,
    "round": _round,
    "and": _bits,
    "or": _bits,
    "xor": _bits,
    "rem": _rem,
    "shift_right_logical": _shift,
    "shift_right_arithmetic": _shift,
}
