"""Packaging of PhysVLM Edge. `pip install .[cpu]` is enough to run it; nothing here ever names TensorRT.

Lower bounds only, and none above what JetPack 6 can install (Python 3.10: numpy 2.2.6, onnxruntime 1.23.2).
"""

from pathlib import Path

from setuptools import find_packages, setup

RUNTIME = [
    "numpy>=1.26",
    "pyserial>=3.5",
    "tomli>=2.0; python_version < '3.11'",  # tomllib stands in the library from 3.11 on
]

# On a Jetson OpenCV, CUDA and TensorRT come from JetPack's own packages: a wheel beside them would shadow the builds
# that match the board, so the extra `jetson` brings none of them.
CPU = ["onnxruntime>=1.20", "opencv-python-headless>=4.10"]
JETSON = ["pycuda>=2024.1"]
APPLIANCE = ["cryptography>=42", "onnxruntime>=1.20"]  # signed bundles

LAB = [
    *CPU,
    "torch==2.13.*",
    "onnx>=1.17",
    "onnxscript>=0.5",
    # FP16 and INT8 on the CPU. Without ModelOpt's own extra `onnx`, which brings CUDA; these are what it needs of it
    "nvidia-modelopt==0.47.*",
    "onnxconverter-common>=1.16",
    "onnx-graphsurgeon>=0.6",
    "onnxslim>=0.1",
    "polygraphy>=0.53.4",
    "lief>=0.16",
    "matplotlib>=3.9",
    "scipy>=1.13",
    "h5py>=3.10",  # data sets in HDF5 and MATLAB 7.3
    "transformers>=4.50",  # a pre-trained CLIP as the teacher
    "av>=14.0",  # renders H.264 and variable-rate clips; brings libx264 along, so it never ships on the device
]

# The linters are held to one minor release: a new one brings new findings, and those belong in a change of their own.
TEST = [
    *APPLIANCE,
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "ruff==0.17.*",
    "mypy==2.4.*",
    "types-pyserial",
    "av>=14.0",
    "PyWavelets>=1.8",  # oracle for the wavelet tests
    "scipy>=1.13",
    "h5py>=3.10",
    "matplotlib>=3.9",
    "pandas>=2.2",  # what recordings are meant to be read with
]

setup(
    name="physvlm-edge",
    version="0.1.0",
    description="Heart and breathing rate of a newborn from camera video, on an edge computer. Investigational.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    # The lab packages (calibration, distillation) ship too: they are small, pure Python. What is heavy about them is
    # torch and its kin, which come with the extra `lab` alone; tests/test_imports.py keeps the runtime free of them.
    packages=find_packages(
        include=[f"{name}{tail}" for name in ("edge", "engines", "firmware_bridge", "calibration", "distillation")
                 for tail in ("", ".*")]
    ),
    package_data={"engines": ["weights/*.onnx", "weights/*.json", "weights/*.jsonl", "weights/*.npz"],
                  "edge": ["kernels/*.cu", "wall_clock.c", "limits.toml", "appliance/files/*"], "calibration": ["*.json"],
                  "firmware_bridge": ["PROTOCOL.md", "wire.toml", "page.html", "display/*.c", "display/*.h", "display/*.py"]},
    install_requires=RUNTIME,
    extras_require={"cpu": CPU, "jetson": JETSON, "appliance": APPLIANCE, "lab": LAB, "test": TEST},
    entry_points={
        "console_scripts": ["physvlm = edge.__main__:main", "physvlm-lab = calibration.__main__:main"],
    },
)
