"""Compile and run: graph writers, engines, devices, parity and bench."""

import os
import sys

# From the moment that they are imported, ONNX Runtime makes a device id and sends usage events to
# Microsoft, and OpenVINO does so to Google Analytics. Both are told not to, before anyone imports
# them: the variable is ONNX Runtime's own, and OpenVINO has a stand-in for a missing module.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
