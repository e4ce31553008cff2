# For a newcomer: `make demo`, `make space` and `make test`. All install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Everything stays on this machine: no hub is asked, and nothing is reported anywhere.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TRANSFORMERS_VERBOSITY ?= error
export MPLBACKEND ?= Agg

.PHONY: install demo space test quality format clean

# The stamp is rebuilt when the requirements change. torch comes first, alone: a build that is at hand or
# already installed satisfies the packages after it, which would otherwise bring the largest one.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "dim-hf needs Python 3.11 or newer, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python examples/demo.py --config examples/configs/demo.yaml $(ARGS)

space: install
	$(BIN)/dim-hf demo $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto --dist loadscope $(ARGS)

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache runs
