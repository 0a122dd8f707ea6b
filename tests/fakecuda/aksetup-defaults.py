# How `make test-cuda` has pycuda built: it reads this as ~/.aksetup-defaults.py. Without it pycuda's setup wants curand.h,
# which small CUDA installations lack, and waits ten seconds three times.
import os

CUDA_ROOT = os.environ["CUDA_ROOT"]
CUDADRV_LIB_DIR = [os.environ["CUDA_STUBS"]]  # a machine without a GPU has no libcuda.so to link with: the stand-in's
CUDA_ENABLE_CURAND = False
