# Two commands do everything on a fresh machine with Python 3.11, pip and make:
#   make demo    the whole federation on this machine, one node killed, a verified result
#   make test    types, style, floors, every test
#   make redteam every attack of the red team, as a table; some start real processes
#   make bench-anomalies, bench-noise, bench-accountant, bench-dpsgd, bench-utility, bench-verify, bench-consent, bench-lineage
#                see benchmarks/README.md
# Against others' released packages, which it installs beside (.venv-rivals):
#   make bench-secagg     our secure sum and theirs, timed in one run; fails if a bar is missed
#   make bench-auditlog   the audit log beside pymerkle and plain SQLite, kill -9, power cuts, 10,000 attacks
#   make bench-masking    masked tables beside anjana's, anonypy's and by pyCANON's measures
#   make redteam-rivals   the attacks ours is tested with, on theirs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RIVALS ?= .venv-rivals
RIVALS_STAMP := $(RIVALS)/.installed
DEMO_ARGS ?=
TEST_ARGS ?=
REDTEAM_ARGS ?=
BENCH_ARGS ?=
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test redteam check install clean redteam-rivals \
	bench-accountant bench-anomalies bench-auditlog bench-consent bench-dpsgd bench-lineage bench-masking bench-noise bench-secagg bench-trips \
	bench-utility bench-verify

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "foedus needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# torch first and alone: 2.13.0 has a CPU build that needs no CUDA packages
	$(BIN)/pip install --quiet 'torch==2.13.0' || $(BIN)/pip install --quiet 'torch>=2.9,<2.14'
	$(BIN)/pip install --quiet --editable '.[demo,dev]'
	touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/foedus demo $(DEMO_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

redteam: $(STAMP)
	PYTHONPATH=tests $(BIN)/python tests/redteam/table.py $(REDTEAM_ARGS)

# The quick tests two at a time, a thread each; those that start real processes by themselves, in peace.
test: export OMP_NUM_THREADS = 1
test: check
	$(BIN)/pytest --numprocesses 2 --dist worksteal -m 'not deployment' --durations=10 $(TEST_ARGS)
	$(BIN)/pytest -m deployment --durations=10 $(TEST_ARGS)

# A layer over $(VENV): nothing is installed twice, and no rival can disturb it.
$(RIVALS_STAMP): $(STAMP) benchmarks/rivals.txt
	$(PYTHON) -m venv $(RIVALS)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(RIVALS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	$(RIVALS)/bin/pip install --quiet --no-deps --requirement benchmarks/rivals.txt
	# says it needs 3.12; what is compared runs on 3.11
	$(RIVALS)/bin/pip install --quiet --no-deps --ignore-requires-python 'aics-tlog==0.2.1'
	touch $(RIVALS_STAMP)

bench-secagg: $(RIVALS_STAMP)
	$(RIVALS)/bin/python benchmarks/secagg.py $(BENCH_ARGS)

# Minutes, most of them anonypy's. Reads ../shared/data, or FOEDUS_DATA. Exits non-zero on a miss. The tests that
# compare with pyCANON run here, too: it pins an older pandas, so no extra of ours can name it.
bench-masking: $(RIVALS_STAMP)
	$(RIVALS)/bin/python -m pytest -q tests/compliance/masking/test_measures.py
	$(RIVALS)/bin/python benchmarks/masking.py --write docs/benchmarks/masking.md $(BENCH_ARGS)

# Some ten minutes. Exits non-zero on a miss, which a busy disk brings. The tests that compare with pymerkle (GPL) and
# aics-tlog run here, too: no extra of ours names them.
bench-auditlog: $(RIVALS_STAMP)
	$(RIVALS)/bin/python -m pytest -q tests/compliance/test_auditlog_differential.py
	PYTHONPATH=tests $(RIVALS)/bin/python benchmarks/auditlog.py --write docs/benchmarks/auditlog.md $(BENCH_ARGS)

redteam-rivals: $(RIVALS_STAMP)
	$(RIVALS)/bin/python benchmarks/rivals_redteam.py

# Minutes: stock Flower takes ten seconds and more for a trip. Exits non-zero on a miss.
bench-trips: $(STAMP)
	$(BIN)/python benchmarks/trips.py --write docs/benchmarks/trips.md $(BENCH_ARGS)

# A quarter of a minute: the exact sampler beside the scalar algorithm it must agree with. Exits non-zero on a miss.
bench-noise: $(STAMP)
	PYTHONPATH=tests $(BIN)/python benchmarks/noise.py $(BENCH_ARGS)

# Two minutes, most of them to fill a register. Exits non-zero on a miss.
bench-consent: $(STAMP)
	$(BIN)/python benchmarks/consent.py --write docs/benchmarks/consent.md $(BENCH_ARGS)

# Half a minute. Lineage's store beside openlineage-python's file transport. Exits non-zero on a miss.
bench-lineage: $(STAMP)
	$(BIN)/python benchmarks/lineage.py --write docs/benchmarks/lineage.md $(BENCH_ARGS)

# A minute. The watch beside fixed rules and an isolation forest, on held-out logs. Exits non-zero on a miss.
bench-anomalies: $(STAMP)
	$(BIN)/python benchmarks/anomalies.py --write docs/benchmarks/anomalies.md $(BENCH_ARGS)

# Three minutes. Exits non-zero on a miss.
bench-dpsgd: $(STAMP)
	$(BIN)/python benchmarks/dpsgd.py --write docs/benchmarks/dpsgd.md $(BENCH_ARGS)

# Half an hour on two cores. Reads ../shared/data, or FOEDUS_DATA. Exits non-zero on a miss.
bench-utility: $(STAMP)
	$(BIN)/python benchmarks/utility.py --write docs/benchmarks/utility.md $(BENCH_ARGS)

# A minute of CPU. Both rivals are installed anyway: dp-accounting and Opacus.
bench-accountant: $(STAMP)
	$(BIN)/python benchmarks/accountant.py $(BENCH_ARGS)

# Two minutes, most of them to make the bundles. Exits non-zero on a miss.
bench-verify: $(STAMP)
	PYTHONPATH=tests $(BIN)/python benchmarks/verify.py --write docs/benchmarks/verify.md $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(RIVALS) foedus-demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
