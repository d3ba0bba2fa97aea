# Everything a developer or a newcomer types. `make up` and `make test` need Python >= 3.11 with venv, make and gcc.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: up demo test explore lint proto proto-check bench fuzz clean

$(STAMP): pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

up: $(STAMP)
	$(BIN)/gridkeeper up

demo: $(STAMP)
	$(BIN)/gridkeeper demo

test: $(STAMP)
	$(BIN)/python -m pytest tests/unit -n auto --dist worksteal
	$(BIN)/python -m pytest tests/integration tests/e2e -n 2 --dist loadfile

# The tests that look for counterexamples, with new random examples each time (`make test` tries the same ones always).
explore: $(STAMP)
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest tests/unit -n auto -m hypothesis

lint: $(STAMP) proto-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --grpc_python_out=. --mypy_out=. \
	  --mypy_grpc_out=. --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc proto/gridkeeper/v1/*.proto

proto-check: proto
	git diff --exit-code -- gridkeeper/v1 || { echo "generated code differs from proto/: commit what 'make proto' made"; exit 1; }

# Each parser of outside bytes; coverage-guided where atheris can be had (make fuzz RUNS=1000000), else by mutation.
RUNS ?= 100000
fuzz: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check 'atheris>=3' || echo "atheris cannot be had here: inputs are mutated seeds"
	$(BIN)/python -m tests.fuzz --runs $(RUNS)

bench: bench-latency

bench-%: $(STAMP)
	$(BIN)/python -m benchmarks.$*

clean:
	rm -rf $(VENV) var build *.egg-info
