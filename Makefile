# pyvm: everything a person or CI does with a checkout.  `make help` lists the targets.
#
# Works on a fresh Debian 12 with make, python3 and apt-get: as root, missing Debian packages are installed; as any
# other user, they are named.  PYTHON chooses the interpreter (3.11 or later), PYVM_CACHE the place of built guests.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
NATIVE := $(wildcard pyvm/native/*.c pyvm/native/*.h)
PYTEST_OPTIONS ?=
# Each may have a guest, which takes a processor and half a GiB.
WORKERS ?= 2
BENCH_OPTIONS ?=
IOTESTS_OPTIONS ?=
TESTS ?=
# Byte code is kept, whatever the environment says: tests and benchmarks start many programs.
unexport PYTHONDONTWRITEBYTECODE
ifeq ($(origin CC),default)
CC := gcc
endif

# A header of the interpreter itself: an interpreter built by hand has its own, Debian's comes in python3-dev.
PYTHON_HEADER = import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------------------------------------------------- setup

.PHONY: setup
setup: $(STAMPS)/pyvm $(STAMPS)/dev ## Prepare .venv with .venv/bin/pyvm in it

$(STAMPS)/system:
	@$(PYTHON) -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' \
	    || { echo "make: $(PYTHON) is older than Python 3.11; name another with PYTHON=" >&2; exit 1; }
	@missing=(); \
	command -v $(CC) >/dev/null || missing+=(gcc); \
	echo '#include <stdio.h>' | $(CC) -E - >/dev/null 2>&1 || missing+=(libc6-dev); \
	command -v dpkg-deb >/dev/null || missing+=(dpkg); \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv); \
	$(PYTHON) -c '$(PYTHON_HEADER)' || missing+=(python3-dev); \
	./.ci/packages "$${missing[@]}"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/pyvm: pyproject.toml setup.py $(NATIVE) | $(STAMPS)/system
	@echo "make: installing pyvm into $(VENV)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(STAMPS)/dev: pyproject.toml | $(STAMPS)/pyvm
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	@touch $@

# QEMU is what the tests and benchmarks compare with, libvirt a client that tests drive machines with, libnbd and nbdkit
# are NBD's other client and server.  Without QEMU, tests use what it was recorded to answer; those of others are skipped.
$(STAMPS)/qemu: | $(STAMPS)/system
	@missing=(); \
	command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86); \
	command -v qemu-img >/dev/null || missing+=(qemu-utils); \
	command -v nbdinfo >/dev/null || missing+=(libnbd-bin); \
	command -v nbdkit >/dev/null || missing+=(nbdkit); \
	[ -x /usr/sbin/libvirtd ] && command -v virsh >/dev/null \
	    || missing+=(libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients); \
	./.ci/packages --optional "$${missing[@]}"
	@touch $@

# ------------------------------------------------------------------------------------------------------------ use

.PHONY: images
images: $(STAMPS)/pyvm ## Build the demo guest (cached)
	@$(BIN)/python -m images.build demo

.PHONY: run
run: $(STAMPS)/pyvm ## Boot the demo guest, show what the qemu-ga in it answers, end
	@$(BIN)/python -m images.demo

.PHONY: console
console: $(STAMPS)/pyvm ## Boot the demo guest with its console here (Ctrl-A x ends it)
	@$(BIN)/python -m images.demo --console

# ----------------------------------------------------------------------------------------------------------- work

.PHONY: test
test: setup $(STAMPS)/qemu ## Run all tests, WORKERS files at a time
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_OPTIONS)

.PHONY: test-unit
test-unit: setup ## Run the quick tests: parts by themselves
	@$(BIN)/python -m pytest tests/unit -n auto --dist worksteal $(PYTEST_OPTIONS)

# libunicorn and the interpreter are not built for the sanitizers: what these see is pyvm/native and what it is handed.
SANITIZED := build/sanitize
SANITIZER_TESTS := tests/unit/test_engine*.py tests/unit/test_native_vector.py tests/unit/test_registers.py tests/unit/test_vcpu.py tests/unit/test_cpuid.py
SANITIZER_RUN = -m pytest -q -p no:cacheprovider

.PHONY: test-sanitize
test-sanitize: setup ## Run the tests of the CPU engine with its C part under ASan, UBSan and TSan
	@rm -rf $(SANITIZED); mkdir -p $(SANITIZED)/pyvm
	@ln -s $(CURDIR)/tests $(CURDIR)/pyproject.toml $(SANITIZED)
	@ln -s $(filter-out %.so %/__pycache__,$(wildcard $(CURDIR)/pyvm/*)) $(SANITIZED)/pyvm
	@include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	build() { $(CC) -std=gnu11 -O1 -g -fno-omit-frame-pointer -fvisibility=hidden -fPIC -shared -I"$$include" "$$@" \
	    $(filter %.c,$(NATIVE)) -o $(SANITIZED)/pyvm/native.so -ldl -lpthread -lm; }; \
	run() { (cd $(SANITIZED) && LD_PRELOAD=$$($(CC) -print-file-name=$$1) "$${@:2}"); }; \
	export ASAN_OPTIONS=detect_leaks=0:handle_segv=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1; \
	build -fsanitize=address,undefined -fno-sanitize-recover=undefined; \
	run libasan.so $(CURDIR)/$(BIN)/python $(SANITIZER_RUN) $(SANITIZER_TESTS); \
	run libasan.so $(CURDIR)/$(BIN)/python -m tests.fuzz.hostile --seconds 10; \
	build -fsanitize=thread; \
	run libtsan.so $(CURDIR)/$(BIN)/python $(SANITIZER_RUN) $(SANITIZER_TESTS)

.PHONY: iotests
iotests: setup ## Run QEMU's tests of its block layer (TESTS="030 041", IOTESTS_OPTIONS=--real) against pyvm
	@$(BIN)/python -m tests.iotests $(IOTESTS_OPTIONS) $(TESTS)

.PHONY: check
check: setup ## Lint, check types, compile the C sources with warnings as errors
	@echo "ruff check"; $(BIN)/ruff check .
	@echo "ruff format"; $(BIN)/ruff format --check --quiet .
	@echo "mypy"; $(BIN)/mypy
	@echo "$(CC) -Wall -Wextra -Werror"; \
	include=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	for source in $(filter %.c,$(NATIVE)); do \
	    $(CC) -std=gnu11 -O2 -fPIC -Wall -Wextra -Werror -I"$$include" -c "$$source" -o /dev/null; \
	done

.PHONY: docs
docs: $(STAMPS)/pyvm ## Write the reference of the monitor's commands anew
	@$(BIN)/python -m pyvm.monitor.reference docs/qmp-reference.md

.PHONY: agent-table
agent-table: setup $(STAMPS)/qemu ## Try each command of the guest agent under QEMU and pyvm; the table goes to docs
	@$(BIN)/python -m benchmarks.agent_table docs/agent-commands.md

.PHONY: bench
bench: setup $(STAMPS)/qemu ## Run pyvm and QEMU side by side; the figures go to benchmarks/results
	@$(BIN)/python -m benchmarks $(BENCH_OPTIONS)

.PHONY: clean
clean: ## Remove what was built in this tree
	@rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find pyvm images tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -f pyvm/native*.so

.PHONY: distclean
distclean: clean ## Remove .venv and what the cache holds of guests and test programs as well
	@rm -rf $(VENV)
	@cache="$${PYVM_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/pyvm}"; \
	rm -rf "$$cache/images" "$$cache/packages" "$$cache/apt" "$$cache/baremetal"
