# make run and make test each set up what they need in .venv, without torch; the lab has its own .venv-lab.

PYTHON ?= python3
VENV := .venv
LAB := .venv-lab
PIP_FLAGS := --quiet --disable-pip-version-check
# The CPU build of torch: PyPI's x86 wheel brings gigabytes of CUDA along. TORCH_INDEX= (empty) takes PyPI's, for training on a GPU.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-lab run test test-lab test-cuda arm64 systemd resolve train lint soak clean

help:
	@echo "make run [VIDEO=path]   the whole chain on a rendered newborn clip, or on your video"
	@echo "make test               the tests, quick ones (no torch)"
	@echo "make test-lab           the tests that need torch, in $(LAB)"
	@echo "make test-cuda          the CUDA layer on the real pycuda over a stand-in driver (needs CUDA's headers, no GPU)"
	@echo "make arm64              the runtime on an emulated 64-bit ARM, against this machine's readings"
	@echo "                        (root; apt-get install debootstrap qemu-user-static)"
	@echo "make systemd            the appliance's unit under a running systemd, in a container"
	@echo "                        (root; apt-get install debootstrap systemd-container)"
	@echo "make resolve            whether pip finds aarch64 wheels for the Pythons of JetPack 6 and 7"
	@echo "make train [OUT=folder] trains the shipped student anew, teacher and clips included (hours; goes on where it was)"
	@echo "make lint               ruff and mypy"
	@echo "make soak               the long tests, faults injected; what is missing skips and says so"
	@echo "                        (apt-get install qemu-system-x86 qemu-system-arm cpio kmod gcc-arm-none-eabi)"
	@echo "make clean              removes the environments and every build output"

setup: $(VENV)/.ready
setup-lab: $(LAB)/.ready

# $(call venv,DIR): an environment with pip in it. Debian's python3 has venv but not ensurepip until python3-venv is there.
define venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "$(PYTHON) is missing or older than 3.10; name another: make PYTHON=python3.11 ..." >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) cannot make an environment; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
@[ -x $(1)/bin/pip ] || { echo "making $(1)"; $(PYTHON) -m venv $(1); }
endef

# $(call reachable,URL): pip's option for that index, nothing where it does not answer: pip would ask it five times a package.
reachable = $(if $(1),$(shell $(PYTHON) -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=10)' \
	$(1)/torch/ 2>/dev/null && echo --extra-index-url $(1)))

$(VENV)/.ready: setup.py
	$(call venv,$(VENV))
	@echo "installing the runtime and the test tools into $(VENV) (about 200 MB to download, no torch) ..."
	@$(VENV)/bin/pip install $(PIP_FLAGS) -e '.[cpu,test]'
	@touch $@

$(LAB)/.ready: setup.py
	$(call venv,$(LAB))
	@echo "installing torch into $(LAB) ..."
	@$(LAB)/bin/pip install $(PIP_FLAGS) $(call reachable,$(TORCH_INDEX)) 'torch==2.13.*'
	@echo "installing the lab into $(LAB) ..."
	@$(LAB)/bin/pip install $(PIP_FLAGS) -e '.[cpu,lab,test]'
	@touch $@

run: setup
	@$(VENV)/bin/python -m calibration.demo $(if $(VIDEO),--video "$(VIDEO)")

# In two processes, but for what waits in real time. Exit code 5: ARGS chose tests of the other run.
test: setup
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m 'not soak and not lab and not alone' $(ARGS) || [ $$? -eq 5 ]
	$(VENV)/bin/python -m pytest -m 'alone and not soak and not lab' $(ARGS) || [ $$? -eq 5 ]

test-lab: setup-lab
	$(LAB)/bin/python -m pytest -m lab $(ARGS)

# The real pycuda over a stand-in driver: no GPU needed, but CUDA's headers, with which pycuda is built (about a minute).
CUDA := .venv-cuda
CUDA_ROOT ?= /usr/local/cuda
CUDA_TESTS := tests/test_cuda.py tests/test_pycuda_real.py tests/test_kernels.py tests/test_cuda_clip.py \
	tests/test_tensorrt_backend.py

test-cuda:
	@if [ ! -f $(CUDA_ROOT)/include/cuda.h ]; then \
		echo "SKIPPED test-cuda: no CUDA headers at $(CUDA_ROOT)/include; name CUDA's folder in CUDA_ROOT"; \
	elif ! command -v g++ >/dev/null; then echo "SKIPPED test-cuda: no g++ to build pycuda with"; \
	else $(MAKE) --no-print-directory $(CUDA)/.ready && PATH="$(CUDA_ROOT)/bin:$$PATH" PHYSVLM_TEST_PYCUDA=real \
		$(CUDA)/bin/python -m pytest $(CUDA_TESTS) $(ARGS); fi

$(CUDA)/.ready: setup.py tests/fakecuda/aksetup-defaults.py
	$(call venv,$(CUDA))
	@echo "installing the runtime and the test tools into $(CUDA) ..."
	@$(CUDA)/bin/pip install $(PIP_FLAGS) -e '.[cpu,test]'
	@echo "building pycuda with $(CUDA_ROOT) ..."
	@mkdir -p $(CUDA)/home && cp tests/fakecuda/aksetup-defaults.py $(CUDA)/home/.aksetup-defaults.py
	@gcc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o $(CUDA)/home/libcuda.so tests/fakecuda/libcuda.c
	@XDG_CONFIG_HOME="$${XDG_CONFIG_HOME:-$$HOME/.config}" HOME="$(CURDIR)/$(CUDA)/home" CUDA_ROOT="$(CUDA_ROOT)" \
		CUDA_STUBS="$(CURDIR)/$(CUDA)/home" $(CUDA)/bin/pip install $(PIP_FLAGS) --no-binary pycuda -e '.[jetson]'
	@touch $@

arm64: setup
	@mkdir -p out
	tests/arm64.sh $(VENV)/bin/python

systemd: setup
	@mkdir -p out
	tests/systemd.sh $(VENV)/bin/python

resolve: setup
	$(VENV)/bin/python tests/resolve.py

# PHYSVLM_RECORDINGS names a folder of recorded beat and breath times; the shipped weights were made with one. Two stages:
# everything, then a little more with clips that went through inter-frame codecs. Each goes on where it was interrupted.
OUT ?= out/train
train: setup-lab
	$(LAB)/bin/python -m calibration train --out $(OUT)/1 $(ARGS)
	$(LAB)/bin/python -m calibration train --out $(OUT)/2 --start $(OUT)/1/student.pt --teacher $(OUT)/1/teacher \
		--n-recompressed 400 --epochs 2 --learning-rate 0.001 --seed 2 $(ARGS)
	$(LAB)/bin/python -m calibration export $(OUT)/2 --out $(OUT)/weights

soak: setup
	$(VENV)/bin/python -m pytest -m soak $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(LAB) $(CUDA) build dist out .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
