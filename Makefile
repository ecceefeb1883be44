# make demo   install, then the main job on synthetic patients: about 6 minutes on two cores, ends with demo/report.html
# make test   install, then lint, format, types, import contracts and tests
# make wheel  build the wheel, install it into an empty environment, segment one FLAIR file with the network off

VENV ?= .venv
PYTEST_ARGS ?=
BIN := $(VENV)/bin

.PHONY: demo test wheel setup lint format types contracts tests clean

demo: setup
	$(BIN)/mindgap demo --out demo

test: lint types contracts tests

wheel: setup
	VENV=$(VENV) scripts/wheel_check.sh

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml scripts/setup.sh
	VENV=$(VENV) scripts/setup.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

tests: setup
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadfile $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) demo build dist
