# Stepdial: `make serve` and `make test` do everything on a machine with Python 3.11, pip and make.

PYTHON ?= python3.11
PORT ?= 8000
CONFIG ?= cluster_configs/laptop.yaml
BIN := .venv/bin
STAMP := .venv/.stepdial-installed

export OMP_WAIT_POLICY := PASSIVE
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install serve test test-long lint format bench bench-router bench-promise bench-start loadtest clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar on -c constraints-cpu.txt -e '.[dev]'
	touch $@

# Ctrl-C ends all of it. PORT=9000 changes the port, CONFIG=... the Serve config.
serve: install
	@$(BIN)/python -m deployments.serve_local --port $(PORT) --config $(CONFIG)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The cluster tests share one Ray and run by themselves; the rest uses both cores.
test: lint
	$(BIN)/python -m pytest -n 2 --ignore tests/e2e
	$(BIN)/python -m pytest tests/e2e

# Replicas that start, drain and stop under open streams: minutes, on a quiet machine.
test-long: install
	$(BIN)/python -m pytest -m long tests/e2e

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Engine against the released loops and the bare model call: an hour on a small machine, so not a part of `test`.
bench: install
	$(BIN)/python -m benchmarks.engine_vs_reference

# What the router adds over a bare Serve stream.
bench-router: install
	$(BIN)/python -m benchmarks.router_overhead

# Stepdial side by side with simpler policies on the same engine, and what its decisions cost (docs/promise.md).
bench-promise: install
	$(BIN)/python -m benchmarks.promise
	$(BIN)/python -m benchmarks.mixture
	$(BIN)/python -m benchmarks.profile_map
	$(BIN)/python -m benchmarks.scheduler_overhead
	$(BIN)/python -m benchmarks.planner_overhead

# How long `make serve` takes to its first answer, and to end on Ctrl-C.
bench-start: install
	$(BIN)/python -m benchmarks.serve_start

# A load test on a cluster of its own, with a report in REPORT (HTML and JSON). LOAD names a file of locustfiles/: mixed_tiers,
# ramp, burst, coding_assistant, document_editor, low_batch, trace_replay (TRACE=file.csv), refusals. RATE in requests per
# second (default: the file's own), DURATION in seconds, LOAD_ARGS for what else the file takes.
LOAD ?= mixed_tiers
DURATION ?= 60
REFUSALS ?= 5
REPORT ?= run/loadtest/$(LOAD)
loadtest: install
	@$(BIN)/python -m deployments.serve_local --port $(PORT) --config $(CONFIG) --then \
		$(BIN)/locust -f locustfiles/$(LOAD).py --headless --only-summary --host http://127.0.0.1:$(PORT) \
		--duration $(DURATION) --refusals $(REFUSALS) --report $(REPORT) \
		$(if $(RATE),--rate $(RATE)) $(if $(TRACE),--trace $(TRACE)) $(LOAD_ARGS)

clean:
	rm -rf .venv build *.egg-info
