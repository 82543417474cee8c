# make quickstart   set up, then build a tree, train, and generate on the embedded sample (minutes on two CPU cores)
# make test         set up, then run all tests, in a process per core
# make check        lint and types
# make docs         build the documentation into site/
# make sample       rebuild the embedded sample's tokenizer and tree, byte for byte

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/quickstart
BIN := $(VENV)/bin
# Python compiles what is imported, once, if it may write that down; compiling all that is installed takes longer.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE
SAMPLE := tree_artifacts/sotu-8k
# Left alone, accelerate gives a process on the CPU one thread.
CORES := $(shell getconf _NPROCESSORS_ONLN)
LAUNCH := $(BIN)/accelerate launch --quiet --num_machines 1 --num_processes 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(CORES)

# glibc would return every large tensor to the kernel and fault it in again at each step.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 100000000000

.PHONY: setup quickstart test check docs sample
setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[dev]"
	touch $@

quickstart: setup
	rm -rf $(RUN)
	$(BIN)/treediff build-tree --text $(SAMPLE)/train.txt.xz --tokenizer $(SAMPLE) \
		--license PDDL-1.0 --output $(RUN)/tree
	$(BIN)/treediff inspect-tree $(RUN)/tree --text $(SAMPLE)/validation.txt.xz --search " government"
	$(LAUNCH) examples/train.py --tree $(RUN)/tree --output $(RUN)/model
	$(BIN)/treediff generate $(RUN)/model
	$(BIN)/treediff generate $(RUN)/model --prompt "The state of the Union is"
	$(BIN)/treediff generate $(RUN)/model --infill "I recommend to the_____ that the_____ of the United States be"

test: setup
	$(BIN)/python -m pytest --numprocesses $(CORES) --dist worksteal $(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

sample: setup
	$(BIN)/treediff build-tree --text $(SAMPLE)/train.txt.xz --train-tokenizer 8192 --seed 0 --license PDDL-1.0 --output $(SAMPLE)
