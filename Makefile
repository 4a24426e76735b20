# Everything runs in .venv, which is made on first use. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
LOWEST_TOOLS := $(shell grep -E '^(pytest|pytest-xdist|threadpoolctl)==' constraints.txt)
LOWEST_TESTS := tests/tnlib tests/tnlib_adapters tnlib tnlib_adapters
SOURCES := tnlib tnlib_adapters tnlib_adapters_cli tnlib_cli tests examples benchmarks $(wildcard docs/*.py)

.PHONY: demo test slow test-machines test-lowest docs docs-check bench clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# The numeric tests as other processors and other numbers of threads run them: ARGS=--list.
test-machines: $(VENV)/.dev
	$(BIN)/python -m tests.machines $(ARGS)

# The tests of both packages with the lowest versions that pyproject.toml allows. Old versions warn of
# new ones among their own requirements, so warnings are no errors there.
test-lowest: build/lowest/.installed
	build/lowest/bin/python -m pytest -n 2 --dist worksteal -W default $(LOWEST_TESTS) $(ARGS)

slow: $(VENV)/.dev build/peft-oldest
	OLDEST_PEFT=$(CURDIR)/build/peft-oldest $(BIN)/python -m pytest -m slow $(ARGS)

# The site, its tutorials executed. docs-check builds it without, and follows its links.
docs: $(VENV)/.docs
	$(BIN)/python examples/hub.py docs/_build/hub
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html $(ARGS)
	$(BIN)/python docs/check_site.py docs/_build/html

docs-check: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going -D nb_execution_mode=off -b html docs docs/_build/check
	$(BIN)/python docs/check_site.py docs/_build/check

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/decompose.py $(ARGS)
	$(BIN)/python benchmarks/tucker.py $(ARGS)
	$(BIN)/python benchmarks/cp.py $(ARGS)
	$(BIN)/python benchmarks/cp_defaults.py $(ARGS)
	$(BIN)/python benchmarks/summary.py
	$(BIN)/python benchmarks/contraction.py $(ARGS)
	$(BIN)/python benchmarks/roofline.py $(ARGS)

# One stamp a set of extras; a change of the pins installs again.
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e '.[$*]'
	touch $@

# The tests' own tools are as new as anywhere; their versions are nobody's but ours.
build/lowest/.installed: pyproject.toml constraints.txt tests/lowest.py
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(PYTHON) tests/lowest.py > $(@D)/constraints.txt
	$(@D)/bin/pip --disable-pip-version-check install -q -c $(@D)/constraints.txt \
	    -e '.[demo,planning,quantization,testing]' beautifulsoup4 tensorly $(LOWEST_TOOLS)
	touch $@

# The oldest supported version of PEFT, beside the one that is installed.
build/peft-oldest: $(VENV)/.dev
	rm -rf $@
	$(PIP) install -q --no-deps --target $@ "peft==0.21.0"
	touch $@

clean:
	rm -rf $(VENV) docs/_build docs/reference/generated build *.egg-info .mypy_cache .ruff_cache .pytest_cache
