"""The network and what runs it. Knows arrays, not frames."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # from 1.29 on ONNX Runtime reports to its maker what it runs and where
