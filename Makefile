# `make train` and `make test` need nothing but Python >= 3.11; both set up .venv first.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
COMPILERS := .compilers

.PHONY: train test test-slow lint notebooks compilers clean

train: $(READY)
	$(RUN) experiments/train.py digits --rule sltt --T 6 --epochs 20 --workdir runs/digits

test: $(READY)
	$(RUN) -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY)
	$(RUN) -m pytest -n 2 --dist loadfile -m slow

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

notebooks: $(READY)
	$(RUN) notebooks/execute.py

# XLA's compilers for GPUs and TPUs, 2 GB, in a folder of their own: in the environment they would be backends.
compilers: $(COMPILERS)/ready

$(COMPILERS)/ready: $(READY)
	rm -rf $(COMPILERS)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --target $(COMPILERS) \
	  `$(RUN) -c "from sltt_jax.analysis import accelerators; print(*accelerators.packages())"`
	@touch $@

clean:
	rm -rf $(VENV) $(COMPILERS) runs dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
	  echo "sltt_jax needs Python 3.11 or newer, but $(PYTHON) is `$(PYTHON) --version 2>&1`." >&2; \
	  echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[experiments,dev]"
	@touch $(READY)
