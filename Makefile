PYTHON := .venv/bin/python
PYTEST_ARGS ?= --numprocesses=auto --dist=worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test lint lab bench cold stress clean setup setup-test setup-bench

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Mount an image, run a program from it, compare with a full pull
	$(PYTHON) -m demo

test: lint lab ## Run everything that must hold: lint, types, all tests with real images
	$(PYTHON) -m pytest -m "not stress" $(PYTEST_ARGS)

lint: setup-test ## Check style and types
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

lab: setup-test ## Make the real images that tests use (once; in .cache/lab)
	$(PYTHON) -m tests.support.lab build

bench: setup-bench ## Measure the parts that decide the speed, as root
	$(PYTHON) -m bench micro

cold: setup-bench ## Measure how long containers take to start, as root
	$(PYTHON) -m bench cold --only python --methods full-containerd,lazyfs-run,lazyfs-run-pack

stress: setup-test ## Run the long tests
	$(PYTHON) -m pytest -m stress $(PYTEST_ARGS)

clean: ## Remove everything that was made here
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@scripts/setup runtime

setup-test:
	@scripts/setup test

setup-bench:
	@scripts/setup bench
