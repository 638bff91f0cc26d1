# `make demo` shows the cluster, `make test` proves it. Needs Python 3.11 or newer with venv; all else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 1000
RUNS ?= 20
ROUNDS ?= 20
DEPLOYS ?= 10
ENTRIES ?= 1000000
GRIDS ?= --seeds 200
WORKERS ?= $(shell expr $$(nproc) \* 3)
BIN = $(VENV)/bin
RUN = $(BIN)/python
unexport PYTHONDONTWRITEBYTECODE  # the tests start hundreds of processes, and each would compile all modules again

.DEFAULT_GOAL := help
.PHONY: help demo smoke test unit browser timing thorough package faults slow-faults simulate grids restarts deploys costs exactness compat lint bench docs \
	screenshot clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# One stamp for each set of dependencies; made again when pyproject.toml changes.
$(VENV)/demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "This needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group demo
	@touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/pip install --quiet --editable '.[redis]' --group dev --group bench --group docs
	$(RUN) -m tests.django_suite.fetch
	@touch $@

demo: $(VENV)/demo  ## three nodes and three sites as one cluster, with a tour; runs until Ctrl-C
	@$(RUN) -m testproject.demo

smoke: $(VENV)/demo  ## the same tour, every claim checked; ends by itself
	@$(RUN) -m testproject.demo --check

test: $(VENV)/dev  ## all tests but those of the targets below, in WORKERS processes (by default three times the CPUs)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

browser: $(VENV)/dev  ## the panel in Chromium
	$(BIN)/pytest -m browser tests/browser

timing: $(VENV)/dev  ## the tests that assert seconds, and of the benchmark, one after the other: they need a machine that does nothing else
	$(BIN)/pytest --timing

thorough: $(VENV)/dev  ## the unit tests with sixty times as many examples, other ones in each run
	HYPOTHESIS_PROFILE=thorough $(BIN)/pytest --unit -n $(WORKERS) --dist worksteal tests/core tests/wire tests/node

package: $(VENV)/dev  ## builds the distributions, and uses the wheel in an empty virtual environment
	$(BIN)/pytest -m package tests/test_package.py

unit: $(VENV)/dev  ## the tests that start no process, in seconds
	$(BIN)/pytest --unit -n $(WORKERS) --dist worksteal tests/core tests/wire tests/node

faults: $(VENV)/dev  ## real faults: processes killed and stopped, hosts and networks cut (needs root, iproute2, iptables)
	$(BIN)/pytest -m 'fault and not slow' -s tests/faults

slow-faults: $(VENV)/dev  ## those of them that take over a minute each: half an hour
	$(BIN)/pytest -m 'fault and slow' -s tests/faults

simulate: $(VENV)/dev  ## membership and copies over SEEDS=1000 simulated clusters of each kind, every invariant checked
	$(RUN) -m tests.core.membership.judge --seeds $(SEEDS)
	$(RUN) -m tests.core.replication.scenarios --seeds $(SEEDS)
	$(RUN) -m tests.core.replication.scenarios --seeds $(SEEDS) --stored

grids: $(VENV)/dev  ## membership under the faults for which others publish figures, days of a core: GRIDS="--seeds 5 --sizes 50"
	$(RUN) -m tests.core.membership.grids $(GRIDS)

restarts: $(VENV)/dev  ## ROUNDS=20 restarts of one of six nodes: no limit exceeded, no own write read stale, no lock twice on its host
	VIEWS_ROUNDS=$(ROUNDS) $(BIN)/pytest -m fault -s tests/faults/test_views.py

deploys: $(VENV)/dev  ## DEPLOYS=10 rolling deploys, RUNS=20 crashes, ENTRIES=1000000 that move: what is lost
	DEPLOYS=$(DEPLOYS) RUNS=$(RUNS) ENTRIES=$(ENTRIES) $(BIN)/pytest -m deploy -s -o faulthandler_timeout=0 tests/deploys

costs: $(VENV)/dev  ## the time and processor time of changes with backups and without
	$(RUN) -m tests.deploys.cost --check

exactness: $(VENV)/dev  ## RUNS=20 times each: exactly the limit passes over three hosts, and what does when an owner is killed
	EXACTNESS_RUNS=$(RUNS) $(BIN)/pytest -s tests/ratelimit/test_exactness.py

compat: $(VENV)/dev  ## the unit and cache suites with each installed Python and its Djangos; of one pair: PAIR=3.13-6.1
	$(BIN)/nox $(if $(PAIR),--session "tests($(PAIR))")

lint: $(VENV)/dev  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/dev  ## side by side with Redis, Memcached and others
	$(RUN) -m bench

screenshot: $(VENV)/dev  ## the pictures of the admin's panel, with Chromium
	$(RUN) -m docs.screenshot

docs: $(VENV)/dev  ## the documentation, into docs/_build
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build

clean:  ## takes away what the other targets made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis docs/_build run
