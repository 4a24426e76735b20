# Everything runs in .venv, which is made on first use. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
SOURCES := tnlib tnlib_adapters tnlib_adapters_cli.py tests examples benchmarks

.PHONY: demo test slow docs bench clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

slow: $(VENV)/.dev build/peft-oldest
	OLDEST_PEFT=$(CURDIR)/build/peft-oldest $(BIN)/python -m pytest -m slow $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/decompose.py $(ARGS)
	$(BIN)/python benchmarks/tucker.py $(ARGS)
	$(BIN)/python benchmarks/cp.py $(ARGS)
	$(BIN)/python benchmarks/contraction.py $(ARGS)
	$(BIN)/python benchmarks/roofline.py $(ARGS)

# One stamp a set of extras; a change of the pins installs again.
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e '.[$*]'
	touch $@

# The oldest supported version of PEFT, beside the one that is installed.
build/peft-oldest: $(VENV)/.dev
	rm -rf $@
	$(PIP) install -q --no-deps --target $@ "peft==0.20.0"
	touch $@

clean:
	rm -rf $(VENV) docs/_build build *.egg-info .mypy_cache .ruff_cache .pytest_cache
