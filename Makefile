# make quickstart   set up, write with the model of examples/, then build a tree, train, measure and write with a small one
# make test         set up, then run all tests, in a process per core
# make check        lint and types
# make gpu-evidence   on a machine with a GPU: measure all that needs one; the next call goes on
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
MODEL := examples/classics-7m
# Left alone, accelerate gives a process on the CPU one thread.
CORES := $(shell getconf _NPROCESSORS_ONLN)
LAUNCH := $(BIN)/accelerate launch --quiet --num_machines 1 --num_processes 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(CORES)

# glibc would return every large tensor to the kernel and fault it in again at each step.
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 100000000000

.PHONY: setup quickstart test check gpu-evidence docs sample
setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e ".[dev]"
	touch $@

quickstart: setup
	rm -rf $(RUN)
	@printf "\n== A model of 7 million parameters writes. _ is an open position; <word> is a cluster, named by its most frequent word.\n"
	$(BIN)/treediff generate $(MODEL) --prompt "And it came to pass" --max-new-tokens 36 --unmasking confidence --seed 16
	@printf "\n== It fills gaps, with both sides given.\n"
	$(BIN)/treediff generate $(MODEL) --infill "The_ spoke to his_, and they_ to the_." --unmasking confidence --seed 13
	@printf "\n== The same gaps, each for a word of one cluster: those of king, father, came and city.\n"
	$(BIN)/treediff generate $(MODEL) --infill "The_ spoke to his_, and they_ to the_." --unmasking confidence \
		--like king father came city
	@printf "\n== Now a tree of its own for a small text, and a model of less than half that size, in minutes.\n"
	$(BIN)/treediff build-tree --text $(SAMPLE)/train.txt.xz --tokenizer $(SAMPLE) \
		--license PDDL-1.0 --output $(RUN)/tree
	$(BIN)/treediff inspect-tree $(RUN)/tree --text $(SAMPLE)/validation.txt.xz --search " government"
	$(LAUNCH) examples/train.py --tree $(RUN)/tree --output $(RUN)/model
	$(BIN)/treediff evaluate $(RUN)/model $(SAMPLE)/validation.txt.xz
	$(BIN)/treediff generate $(RUN)/model --prompt "The state of the Union is"
	@echo "$$NEXT"

define NEXT

== Next, in the environment that was set up (. $(BIN)/activate):
treediff evaluate $(MODEL) my_text.txt                                 perplexity and bits per byte of a text
treediff generate $(MODEL) --prompt "Once" --watch                     the text as it is written, live
treediff inspect-tree $(MODEL) --html tree.html                        the tree as a page
treediff train --from $(MODEL) --text my_text.txt --output my_model    the model, trained further on your text
pip install -e ".[demo]" && treediff app $(MODEL)                      a page on which it writes
docs/tutorial.md                                                               from your own text to a model on the Hub
endef
export NEXT

test: setup
	$(BIN)/python -m pytest --numprocesses $(CORES) --dist worksteal $(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-evidence: setup
	$(BIN)/python -m benchmarks.report.gpu_evidence

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

sample: setup
	$(BIN)/treediff build-tree --text $(SAMPLE)/train.txt.xz --train-tokenizer 8192 --seed 0 --license PDDL-1.0 --output $(SAMPLE)
