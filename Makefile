# Everything a newcomer or the CI runs. The first call makes .venv; later ones reuse it until the versions change.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
READY := .venv/.ready
# The first Python that is new enough; `make PYTHON=/usr/bin/python3.12 ...` chooses another. Each candidate is run,
# because a name on PATH may be a launcher (pyenv's, for one) with no such version behind it.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# A test process takes about 4 GB with its Spark; a Spark session is shared by all tests of a process.
TEST_PROCESSES ?= 2

.PHONY: help setup demo demo-delta test long quick check audit chaos gpu-paper kills bench quality cascade whole-table format lock clean

help: ## Show this list
	@echo "make VERB, with VERB one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# `make demo MODEL=tiny` needs no network: the model that comes with the package, and questions that it was made for.
MODEL ?= smollm2
DEMO_MODEL = --set model.path=$(MODEL) $(if $(filter tiny,$(MODEL)),--set input.path=dolly_batch/samples/instructions.jsonl)

demo: $(READY) ## Answer the sample table with a small real model, into a Parquet table (needs no Java and no GPU)
	@rm -rf demo-output/answers demo-output/work
	@$(BIN)/dolly-batch run conf/demo.yaml --show 50 $(DEMO_MODEL)

demo-delta: $(READY) ## The same into a Delta table; the first time, Spark fetches the Delta connector from Maven Central
	@rm -rf demo-output/answers-delta demo-output/work-delta
	@$(BIN)/dolly-batch run conf/demo-delta.yaml --show 50 $(DEMO_MODEL)

test: $(READY) ## Run the tests; ARGS="-k java" chooses some
	@$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

long: $(READY) ## Run the tests that take half a minute each: clusters, one kill of each kind, whole commands
	@$(BIN)/pytest -n $(TEST_PROCESSES) --dist load -m long $(ARGS)

quick: $(READY) ## Run the tests that need no Spark and no waiting, in under a minute
	@$(BIN)/pytest -n $(TEST_PROCESSES) -m "not chaos and not long and not spark and not slow" $(ARGS)

check: $(READY) ## Lint, formatting and types: ruff, ruff format, mypy --strict; known vulnerabilities once a day
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python tools/audit.py --daily

audit: $(READY) ## Look the locked versions up among known vulnerabilities (pip-audit), where the network lets it
	@$(BIN)/python tools/audit.py

chaos: $(READY) ## Many real kills, minutes long
	@$(BIN)/pytest -m chaos

# What the GPU code is proved by where there is no GPU: 6 minutes, with OLDER 12, of which `make test` has the quick part.
GPU_TESTS = $(wildcard tests/engine/test_gpu*.py) tests/engine/test_kernels_gpu.py tests/engine/test_int8_gpu.py \
	tests/engine/test_fp8_gpu.py \
	tests/engine/test_constraints_at_once.py
# A second environment, in .venv-paper: what a GPU machine may have. Triton 3.6's interpreter needs numpy < 2.4.
PAPER_VERSIONS = "torch==2.11.0" "transformers==5.17.0" "triton==3.6.0" "numpy<2.4"
OLD_NUMPY = "ignore:Conversion of an array:DeprecationWarning"
PAPER_READY = .venv-paper/.ready

gpu-paper: $(READY) $(if $(OLDER),$(PAPER_READY)) ## What can be known of the GPU code without a GPU; OLDER=yes also in a GPU machine's older versions
	@$(BIN)/pytest -m "chaos or not chaos" $(GPU_TESTS) $(ARGS)
	@$(if $(OLDER),.venv-paper/bin/python -m pytest -W $(OLD_NUMPY) $(GPU_TESTS) $(ARGS),:)
	@$(BIN)/python -m benchmarks.gpu.calculator --models 12b

$(PAPER_READY): $(READY)
	@echo "Making .venv-paper: some minutes, about 5 GB on disk"
	@$(BIN)/uv venv -q --allow-existing --python $(BIN)/python .venv-paper
	@$(BIN)/uv pip install -q --python .venv-paper/bin/python $(PAPER_VERSIONS) \
		-e . pytest hypothesis llguidance accelerate pandas pyarrow
	@touch $@

kills: $(READY) ## 200 random kills, an hour and more, every row counted; ARGS="--kills 20" for less
	@$(BIN)/python benchmarks/kills.py $(ARGS)

bench: $(READY) ## The engine and its peers on the same work, about an hour; ARGS="--minutes 8 --rows 200" for less
	@$(BIN)/python benchmarks/peers.py $(ARGS)

quality: $(READY) ## What the demo's model answers on real tables, half an hour; ARGS="--rows 50 --only classify" for less
	@$(BIN)/python -m benchmarks.quality $(ARGS)

cascade: $(READY) ## What a cascade saves on real tables, and whether it holds its promise; ARGS="--teachers noisy" for less
	@$(BIN)/python -m benchmarks.cascade $(ARGS)

whole-table: $(READY) ## Time the whole job on databricks-dolly-15k (needs the data, see benchmarks/whole_table.py)
	@$(BIN)/python benchmarks/whole_table.py $(ARGS)

format: $(READY) ## Put the formatting right, and what else ruff can repair
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: $(READY) ## Write constraints.txt from what .venv holds, and requirements.lock with the hashes of their files
	@{ grep '^#' constraints.txt; $(BIN)/pip freeze --exclude-editable --exclude dolly-batch; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt
	@$(BIN)/uv pip compile pyproject.toml --extra local --extra dev -c constraints.txt --generate-hashes --universal \
		--python-version 3.11 --no-annotate --no-header -q -o .venv/requirements.lock
	@{ head -1 requirements.lock; cat .venv/requirements.lock; } > .venv/headed.lock
	@mv .venv/headed.lock requirements.lock
	@touch $(READY)
	@echo "constraints.txt and requirements.lock now hold the versions in .venv"

clean: ## Remove what demos, tests and builds wrote; .venv stays (remove it by hand to install anew)
	@rm -rf demo-output build dist *.egg-info spark-warehouse metastore_db derby.log artifacts
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

setup: $(READY) ## Make .venv with everything in it (the other verbs do so when needed)

$(READY): $(BIN)/pip pyproject.toml requirements.lock
	@echo "[2/2] Installing into .venv. The first time this fetches torch and Spark: some minutes, about 6 GB on disk"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
	@echo "      Ready. The command is $(BIN)/dolly-batch"

# Debian keeps what `venv` needs to put pip into an environment in a package of its own; a pip that is already on the
# machine can do it instead. pip comes last either way, so where it is, the environment is whole.
$(BIN)/pip:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer is needed and none was found. Debian, Ubuntu: sudo apt install python3 python3-venv"; \
		exit 1; \
	fi; \
	echo "[1/2] Making .venv with $$($$python --version)"; \
	$$python -m venv .venv &>/dev/null \
	|| { $$python -m venv --without-pip .venv && $$python -m pip --python $(BIN)/python install --quiet pip; } &>/dev/null \
	|| { rm -rf .venv; \
		echo "$$python cannot make a virtual environment. Debian, Ubuntu: sudo apt install $$(basename $$python)-venv"; \
		exit 1; }
