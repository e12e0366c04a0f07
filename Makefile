# `make train` and `make test` need nothing but Python >= 3.11; both set up .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
COMPILERS := .compilers
PIP := -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Of `make release`: the Pythons that the wheel is tried on, and the tests.
PYTHONS ?= $(PYTHON)
TESTS ?= tests

.PHONY: train test test-slow lint notebooks compilers docs release clean

train: $(READY)
	$(RUN) experiments/train.py digits --rule sltt --T 6 --epochs 20 --workdir runs/digits

test: $(READY)
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

# Three at a time on two cores: many of them wait for other processes, to be killed or to find one another.
# The longest files come first, as tests/conftest.py orders them.
test-slow: $(READY)
	$(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m slow

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

notebooks: $(READY)
	$(RUN) notebooks/execute.py

# XLA's compilers for GPUs and TPUs, 1.7 GB, in a folder of their own: in the environment they would be backends.
compilers: $(COMPILERS)/ready

$(COMPILERS)/ready: $(READY)
	rm -rf $(COMPILERS)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILERS) \
	  `$(RUN) -c "from sltt_jax.analysis import accelerators; print(*accelerators.packages())"`
	@touch $@

docs: $(VENV)/docs
	$(VENV)/bin/mkdocs build --strict --quiet

# The fast tests of the sdist, on what the wheel installs in place of the sources.
release: $(READY)
	rm -rf dist build/release
	$(RUN) -m build
	set -e; for python in $(PYTHONS); do \
	  tree=build/release/`basename $$python`; mkdir -p $$tree; \
	  tar -xzf dist/*.tar.gz -C $$tree --strip-components=1; rm -r $$tree/sltt_jax; \
	  $$python -m venv $$tree/.venv; \
	  $$tree/.venv/bin/python $(PIP) "`ls $(CURDIR)/dist/*.whl`[experiments,dev]"; \
	  ( cd $$tree; .venv/bin/python -c "import sltt_jax; assert 'site-packages' in sltt_jax.__file__"; \
	    ln -s .venv/lib/python*/site-packages/sltt_jax sltt_jax; \
	    .venv/bin/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS) ); \
	done

clean:
	rm -rf $(VENV) $(COMPILERS) runs dist build site .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "sltt_jax needs Python 3.11 or newer, but $(PYTHON) is `$(PYTHON) --version 2>&1`." >&2; \
	  echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) $(PIP) -e ".[experiments,dev]"
	@touch $(READY)

$(VENV)/docs: $(READY)
	$(RUN) $(PIP) -e ".[docs]"
	@touch $(VENV)/docs
