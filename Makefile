# `make demo` and `make test` from a fresh clone with python3 (3.11 or later) and a C++ compiler. Everything goes into
# .venv, build/, dist/ and runs/; what is there already is used again, without the network.
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q -c constraints.txt
WHEEL = $$(ls dist/dcfast-*.whl)
SOURCES := setup.py pyproject.toml CMakeLists.txt README.md $(shell find csrc dcfast -name '__pycache__' -prune -o -type f ! -name '*.so' -print)

# The source tree must never shadow the installed wheel, neither here nor in the processes that tests start.
export PYTHONSAFEPATH := 1
PYTEST := $(BIN)/pytest

# Triton has wheels for Linux only; without nvcc there are no CUDA objects to look into.
PROCESSES := test-cpu
ifeq ($(shell uname -s),Linux)
  PROCESSES += test-interpreter test-offline
endif
OFFLINE_BACKENDS := triton-offline$(if $(shell command -v nvcc),$(shell echo ,)cuda-offline)

.PHONY: demo test test-cpu test-interpreter test-offline bench lint format mutate wheel clean distclean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/dcfast train digits --output runs/demo --overwrite
	@echo
	@echo "Results: $(abspath runs/demo)"
	@echo "  report.html       curves, cluster sizes, filters and images per cluster: open it in a browser"
	@echo "  assignments.npz   the cluster of every image"
	@echo "  metrics.jsonl     one line per epoch"

test: $(PROCESSES)

# Threads that spin while they wait starve those that work wherever the cores are busy with something else.
test-cpu test-interpreter test-offline: export OMP_WAIT_POLICY := PASSIVE

test-cpu: $(VENV)/.test
	$(PYTEST) tests --require-backends=native,reference

test-interpreter: $(VENV)/.test
	$(PYTEST) tests/interpreter --require-backends=triton-interpreter

test-offline: $(VENV)/.test
	$(PYTEST) tests/offline --require-backends=$(OFFLINE_BACKENDS)

bench: $(VENV)/.bench
	$(PYTEST) benchmarks/bench_*.py -q -s

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

mutate: $(VENV)/.test
	$(BIN)/python tests/mutate.py

wheel: dist/.built

clean:
	rm -rf build dist .benchmarks .hypothesis .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find csrc dcfast tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# ---- stamps -------------------------------------------------------------------------------------------------------
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("dcfast needs Python 3.11 or later; " \
	  "this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# What pyproject.toml asks for to build with. It is kept here, and not in a throw-away environment, so that a second
# build compiles only what changed and needs no network.
$(VENV)/.build-tools: $(VENV)/.created constraints.txt pyproject.toml
	$(INSTALL) setuptools wheel cmake ninja pybind11
	touch $@

dist/.built: $(VENV)/.build-tools $(SOURCES)
	rm -rf dist build/lib* build/bdist*
	PATH="$(BIN):$$PATH" $(PIP) wheel . -q --no-deps --no-build-isolation -w dist
	touch $@

$(VENV)/.installed: dist/.built
	@echo "Installing into $(VENV) (the first time takes minutes)"
	$(PIP) uninstall -q -y dcfast 2>/dev/null
	$(INSTALL) "$(WHEEL)"
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(INSTALL) "$(WHEEL)[test]"
	touch $@

$(VENV)/.bench: $(VENV)/.installed
	$(INSTALL) "$(WHEEL)[bench]"
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(INSTALL) ruff mypy clang-format
	touch $@
