# Each target does its own set-up in .venv and starts from a machine that has Python, a C++ compiler and a package
# registry; a second run redoes only what a change asks for. An activated environment is left alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Of this machine's GPUs alone; without one, two that the checks ask for. All of them would take minutes.
export CNNLSTM_CUDA_ARCHS ?= native
# The tests of a tier run on two workers; those that need the machine to themselves follow, one at a time.
PYTEST := $(BIN)/python -m pytest --benchmark-disable tests $(wildcard bench/test_*.py)
SWITCHES := NATIVE=$(CNNLSTM_NATIVE) CUDA=$(CNNLSTM_CUDA) $(CNNLSTM_CUDA_ARCHS) $(CUDA_HOME) $(CXX)
NATIVE_SOURCES := CMakeLists.txt setup.py cnnlstm_fast/recurrent/operators.schema $(shell find csrc -type f)

.PHONY: help demo test test-slow lint sanitize bench build clean
help:
	@echo "make demo | test | test-slow | lint | sanitize | bench | build | clean"

demo: $(STAMPS)/demo $(STAMPS)/native
	@$(BIN)/cnnlstm-fast demo

test: $(STAMPS)/test $(STAMPS)/native $(STAMPS)/emulator
	@failed=0; \
	$(PYTEST) -n 2 --dist worksteal -m "not slow and not serial" || failed=1; \
	$(PYTEST) -m "serial and not slow" || failed=1; \
	exit $$failed

# What `test` leaves out, and more draws of what is drawn at random.
test-slow: $(STAMPS)/test $(STAMPS)/native $(STAMPS)/emulator
	@failed=0; \
	$(PYTEST) -n 2 --dist worksteal --hypothesis-profile=slow -m "(slow or drawn) and not serial" || failed=1; \
	$(PYTEST) --hypothesis-profile=slow -m "(slow or drawn) and serial" || failed=1; \
	exit $$failed

lint: $(STAMPS)/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

# The CPU kernels without PyTorch, under the compiler's sanitizers.
sanitize: $(STAMPS)/base
	@set -e; for kinds in address,undefined thread; do \
	  folder=build/sanitize/$${kinds%%,*}; \
	  echo "== sanitizers: $$kinds"; \
	  $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DSANITIZE=$$kinds --log-level=NOTICE \
	    -S csrc/tests -B $$folder; \
	  $(BIN)/cmake --build $$folder; \
	  $$folder/sanitize; \
	done

bench: $(STAMPS)/test $(STAMPS)/native
	@$(BIN)/cnnlstm-fast bench

build: $(STAMPS)/native

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f cnnlstm_fast/*.so cnnlstm_fast/_build_notes.json $(STAMPS)/native $(STAMPS)/emulator

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else \
	  "cnnlstm_fast needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: choose one with make PYTHON=python3.12" \
	  % sys.version_info[:2])'
	@echo "== virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/base: $(STAMPS)/venv constraints.txt
	@echo "== PyTorch and the build tools"
	@$(PIP) torch numpy setuptools wheel cmake ninja pybind11
	@touch $@

# Holds the switches of the last build, and is newer than it when they have changed.
$(STAMPS)/switches: $(STAMPS)/base FORCE
	@echo '$(SWITCHES)' | cmp -s - $@ || echo '$(SWITCHES)' > $@
FORCE:

$(STAMPS)/native: $(STAMPS)/base $(STAMPS)/switches $(NATIVE_SOURCES)
	@echo "== native libraries"
	@$(BIN)/python setup.py -q build_native --inplace
	@touch $@

# The CUDA kernels for the CPU, which tests run.
$(STAMPS)/emulator: $(STAMPS)/test $(STAMPS)/switches $(NATIVE_SOURCES)
	@echo "== CUDA kernels for the CPU"
	@$(BIN)/python setup.py -q build_emulator
	@touch $@

# One stamp for each set of extras. The native libraries come first: the installation then finds them built.
$(STAMPS)/demo $(STAMPS)/test $(STAMPS)/dev: $(STAMPS)/base pyproject.toml | $(STAMPS)/native
	@echo "== cnnlstm-fast[$(@F)]"
	@$(PIP) --no-build-isolation -e '.[$(@F)]'
	@touch $@
