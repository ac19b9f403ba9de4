"""Why a conversion failed, from what the converter wrote about it."""

import re

_PREFIX = "Could not translate MLIR to FlatBuffer."


def reason(message: str, noise: str, lowered: str) -> str:
    """Name the operation that has no builtin, what it is called in JAX, and the line it comes from.

    Args:
      message: of the converter's error.
      noise: what it wrote to stderr.
      lowered: the StableHLO of the functions.

    >>> message = "m.py:7:3: error: 'vhlo.sort_v1' op is not part of the vhlo support yet."
    >>> reason(message, 'loc(callsite("jit(f)/sort" at', "")
    "no TensorFlow Lite builtin for sort ('vhlo.sort_v1' op is not part of the vhlo support yet.), m.py:7"
    """
    faults = re.findall(r"^(?:([^\n]*?:\d+):\d+: )?error: (.+)$", f"{message}\n{noise}", re.MULTILINE)
    # That the whole module is left over says nothing; why it could not be read is in the noise.
    telling = [fault for fault in faults if "XlaCallModule" not in fault[1]] or faults
    place, text = telling[0] if telling else ("", message.strip().partition("\n")[0] or "it gave no reason")
    unknown = re.search(r"error: (unregistered operation .+|dialect .+ is unknown)", noise)
    if unknown and "XlaCallModule" in message:
        place, text = "", unknown[1]
    called = re.search(r'loc\((?:callsite\()?"(?:[^"]*/)?([A-Za-z_][\w-]*)"', noise)
    foreign = sorted(set(re.findall(r"custom_call @(\w+)", lowered)) - {"Sharding"})
    operations = [called[1]] if called else foreign
    where = f", {place.removeprefix(_PREFIX)}" if place and "site-packages" not in place else ""
    if not operations:
        return f"the converter failed: {text}{where}"
    return f"no TensorFlow Lite builtin for {', '.join(operations)} ({text}){where}"
