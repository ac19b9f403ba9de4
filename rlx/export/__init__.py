"""Ship it: TensorFlow Lite through jax2tf, ONNX, StableHLO; images in, and run what was exported.

    signatures = {"logits": (fn, [jax.ShapeDtypeStruct((1, 64), jnp.int32)])}
    export.lint(signatures)                                        # what would fail or differ, with its line
    export.to_tflite(signatures, "model.tflite", metadata={"tokenizer": text})
    model = export.load_tflite("model.tflite")
    logits, = model("logits", ids)
    print(export.report("model.tflite"))                           # bytes, operations, milliseconds

`fn` closes over its parameters. Quantised weights go into the file code for code.
"""

from ._lint import Finding as Finding
from ._lint import lint as lint
from ._onnx import to_onnx as to_onnx
from ._preprocess import preprocess as preprocess
from ._report import Measured as Measured
from ._report import Report as Report
from ._report import report as report
from ._stablehlo import load_stablehlo as load_stablehlo
from ._stablehlo import to_stablehlo as to_stablehlo
from ._tflite import Exported as Exported
from ._tflite import to_tflite as to_tflite
from ._tflite_run import TFLite as TFLite
from ._tflite_run import load_tflite as load_tflite
from ._tflite_run import run_tflite as run_tflite
