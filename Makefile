# Two commands matter: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Compiles the hot paths too, where a C compiler is.
INSTALL_SELF := $(INSTALL) --no-deps --no-build-isolation -e .

# Rounds of `make soak`; `make soak CRM_REPLAY_KILL_ROUNDS=200` runs for hours.
CRM_REPLAY_KILL_ROUNDS ?= 20
CRM_REPLAY_SOAK_RUNS ?= 30
CRM_REPLAY_FAILURE_ROUNDS ?= 10
CRM_REPLAY_EFFECTS_UP_TO ?= 4
CRM_REPLAY_SEAM_SEEDS ?= 20

# Test processes at once, each with servers of its own: most tests wait for a server most of the time. Servers that the
# environment names are shared, and then the tests take turns.
TEST_PROCESSES ?= $(if $(KAFKA_BOOTSTRAP_SERVERS)$(MONGODB_URL)$(CRM_AUDIT_DATABASE_URL),0,4)

.PHONY: help setup demo test soak check screenshots format lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP) ## make .venv with the command .venv/bin/crm-replay; compile what is not, or has been edited since
	@if $(BIN)/python -c 'import sys; from schemas import compiled; sys.exit(not compiled.is_due())'; then $(INSTALL_SELF); fi
	@$(BIN)/python -c 'from schemas import compiled; print("hot paths:", compiled.hot_paths())'

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL_SELF)
	@touch $@

demo: setup ## start the embedded servers, load two CRMs, replay, show the ledger, stop everything
	$(BIN)/crm-replay demo

test: setup ## every test, on real servers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
	CRM_REPLAY_COMPILED=0 $(BIN)/python -m pytest -n $(TEST_PROCESSES) -m hot_paths tests/unit

soak: setup ## kills, rebalances and dying servers for an hour or so; ends with what was injected and what came of it
	CRM_REPLAY_KILL_ROUNDS=$(CRM_REPLAY_KILL_ROUNDS) CRM_REPLAY_SOAK_RUNS=$(CRM_REPLAY_SOAK_RUNS) \
	CRM_REPLAY_EFFECTS_UP_TO=$(CRM_REPLAY_EFFECTS_UP_TO) \
	CRM_REPLAY_FAILURE_ROUNDS=$(CRM_REPLAY_FAILURE_ROUNDS) CRM_REPLAY_SEAM_SEEDS=$(CRM_REPLAY_SEAM_SEEDS) \
	$(BIN)/python -m pytest \
	  tests/e2e/test_effects.py tests/e2e/test_kills.py tests/e2e/test_server_failures.py tests/e2e/test_seam.py tests/integration/processors/test_rebalance.py \
	  tests/integration/sink/test_deaths.py tests/integration/producer/test_snapshot.py \
	  tests/unit/producer/test_snapshot.py tests/unit/processors/test_batching.py

check: setup ## the quick half: lint, types, tests that need no server
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit

screenshots: setup ## renew docs/screenshots from the pages of the browser tests
	CRM_REPLAY_SCREENSHOTS=docs/screenshots $(BIN)/python -m pytest tests/browser

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-emit-find-links --quiet --custom-compile-command 'make lock' pyproject.toml

lock: ## pin every dependency again (needs uv: pip install uv)
	$(COMPILE) --extra dev --upgrade -o requirements.lock
	$(COMPILE) --constraint requirements.lock -o requirements.runtime.lock

clean: ## stop the servers; remove what setup and they left in this folder
	@if [ -x $(BIN)/crm-replay ]; then $(BIN)/crm-replay services down --delete-data; fi
	rm -rf $(VENV) .crm-replay .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find schemas producer processors sink -name '*.so' -delete
