# Everything a developer or a visitor runs. The first target that needs it sets the environment up, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
READY := .venv/.ready
export PYTHONDONTWRITEBYTECODE=
export NO_MKDOCS_2_WARNING=1

.PHONY: help setup demo test test-all check format docs bench-deadline bench-deadline-full bench-deadline-sim bench-federated bench-serving bench-serving-full bench-serving-sim bench-overhead clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 28

setup: $(READY) ## install everything into .venv (done by the other targets when needed)

$(READY): pyproject.toml uv.lock scripts/setup.sh
	@scripts/setup.sh
	@touch $@

demo: $(READY) ## run the flight-delay retraining pipeline end to end (KEEP=1 leaves it running)
	@$(BIN)/python -m demo $(if $(KEEP),--keep)

# What can share the machine runs side by side: what is quick first, then federations, which mostly wait, and served
# models of which nothing is measured. What needs it for itself (crowded CPU groups, Spark, models under load) comes last.
CROWDED := $(addprefix tests/contract/test_cpu_,cgroup_v1.py deaths.py port.py)
QUICK := tests/unit tests/simulation $(filter-out $(CROWDED),$(wildcard tests/contract/test_*.py))
CALM := $(addprefix tests/integration/test_roma_,$(addsuffix .py,airflow artefacts clients daemon dashboard gpus malformed \
	runtimes schema secure_daemon upgrade))
SHARED := $(wildcard tests/integration/test_federated_*.py) $(CALM)
ALONE := $(CROWDED) $(filter-out $(SHARED),$(wildcard tests/integration/test_*.py)) tests/system
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE := -n logical --dist loadfile
OR_NONE := || [ $$? = 5 ] # PYTEST_ARGS may choose none of a group's tests

test: $(READY) ## run the tests, but for the longest ones
	@scripts/browser.sh
	$(PYTEST) $(QUICK) $(SIDE_BY_SIDE) -m "not long" $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) $(SHARED) $(SIDE_BY_SIDE) -m "not long" $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) $(ALONE) -m "not long" $(PYTEST_ARGS) $(OR_NONE)

test-all: $(READY) ## run all tests, the longest ones too
	@scripts/browser.sh
	$(PYTEST) $(QUICK) $(SIDE_BY_SIDE) $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) $(SHARED) $(SIDE_BY_SIDE) $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) $(ALONE) $(PYTEST_ARGS) $(OR_NONE)

check: $(READY) ## formatting, lint, types and architecture, exactly as CI checks them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(READY) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## build the documentation into site/
	@$(BIN)/uv sync --locked --all-extras --group docs --inexact --quiet
	$(BIN)/mkdocs build --strict

bench-deadline: $(READY) ## deadlines on real Spark against rivals, about 15 minutes (BENCH_ARGS for others)
	$(BIN)/python -m benchmarks.deadline $(or $(BENCH_ARGS),--quick)

bench-deadline-full: $(READY) ## the same with everything: hours; BENCH_ARGS=--resume goes on after an interruption
	$(BIN)/python -m benchmarks.deadline --full $(BENCH_ARGS)

bench-deadline-sim: $(READY) ## simulate a thousand applications under the real policies (BENCH_ARGS for other conditions)
	$(BIN)/python -m benchmarks.deadline_sim --out . $(or $(BENCH_ARGS),--seeds 1000 --only 'ours_*/warm/1.2' 'paper/warm/1.2')

bench-federated: $(READY) ## federated training against its rivals, simulated and on NVFlare: half an hour (BENCH_ARGS for less)
	$(BIN)/python -m benchmarks.federated --out . $(BENCH_ARGS)

bench-serving: $(READY) ## models under objectives on real TensorFlow against rivals, about 20 minutes (BENCH_ARGS for others)
	$(BIN)/python -m benchmarks.serving $(or $(BENCH_ARGS),--quick)

bench-serving-full: $(READY) ## the same with everything: hours; BENCH_ARGS=--resume goes on after an interruption
	$(BIN)/python -m benchmarks.serving --full $(BENCH_ARGS)

bench-overhead: $(READY) ## what ROMA's gateway costs, and throughput beside other servers, about 10 minutes
	$(BIN)/python -m benchmarks.serving.overhead $(or $(BENCH_ARGS),--quick)

bench-serving-sim: $(READY) ## simulate up to a hundred models on 64 cores under ROMA's policies (BENCH_ARGS for other conditions)
	$(BIN)/python -m benchmarks.serving_sim --out . $(or $(BENCH_ARGS),--seeds 3 --only '*/8x10/*' '*/16x30/steps/*')

clean: ## remove what the other targets made
	rm -rf .venv site demo-report .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
