# make build   set up, then build a verified FP16 bundle from the packaged model: the first result
# make test    set up, then run the tests
# make check   what CI runs: format, lint, types, the site, tests (the layers are among the tests)
# make docs    the documentation as a site, into build/site
# make wheel   the wheel, into dist
# make plugin  compile the TensorRT plugin; needs CUDA and TENSORRT_ROOT (TensorRT's headers)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
PYTEST_ARGS ?=

.PHONY: build test check docs wheel format plugin clean

build: $(STAMP)
	$(BIN)/gmf-edge build --precision fp16 --output out/pico

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not gpu and not slow" $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs
	$(MAKE) test

# the theme's notice about another project is left out
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

plugin:
	cmake -S plugins -B build/plugins -DTENSORRT_ROOT="$(firstword $(subst :, ,$(TENSORRT_ROOT)))"
	cmake --build build/plugins --parallel 2

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $$($(PYTHON) --version) is too old for the packages that constraints.txt pins" >&2; \
	    echo "what to do: name another one, 3.11 to 3.13: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[workstation,openvino,kernels,dev]'
	touch $@

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache
