"""The runtime on the device: camera -> region -> student -> wavelet post-processing -> gate -> serial."""
