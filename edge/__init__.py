"""The runtime on the device: camera -> region -> student -> wavelet post-processing -> gate -> serial."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a pool of threads doubles the CPU of pieces so small
