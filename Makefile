# `make` or `make help` lists the targets. PROFILE=smoke builds in .smoke/ in minutes, from runs of
# seconds, and leaves every committed file alone; RETRAIN=1 trains the recorded runs anew.

PYTHON ?= python3
PY := .venv/bin/python

ifeq ($(PROFILE),smoke)
BUILD := .build/smoke
OUT := .smoke/
else ifeq ($(PROFILE),)
BUILD := .build/full
OUT :=
else
$(error PROFILE=$(PROFILE) is unknown: leave it out or use PROFILE=smoke)
endif

NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
STAMPS := $(NOTEBOOKS:notebooks/%.ipynb=$(BUILD)/%.done)
# what the notebooks show comes from here; what builds the PDF makes no notebook stale
INPUTS := $(wildcard lib/*.py lib/heads/*.py lib/*.mplstyle studies/*.py benchmarks/*.py \
  course/page.py course/interactive.* results/claims_source.csv \
  $(OUT)results/*.jsonl)
PDF := $(OUT)report/report.pdf
LAYOUT := report/metadata.yml report/references.bib $(wildcard report/*.py report/layout/*)

export LASTNAME FIRSTNAME ID REPO
export RUN_LOG := $(CURDIR)/$(BUILD)/runs.log

ifeq ($(PROFILE),smoke)
# with make -j2 notebooks run side by side: with more threads than cores each would wait for the others
export OMP_NUM_THREADS := 1
else
# what a notebook trains or measures has the machine to itself
.NOTPARALLEL:
endif
.DELETE_ON_ERROR:
.PHONY: help report test lab submission colab study bench clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

report: .venv/.installed ## data, notebooks, figures and report/report.pdf: whatever is out of date
	@mkdir -p $(BUILD) && rm -f "$$RUN_LOG" && touch $(BUILD)/started
	@$(MAKE) -s --no-print-directory $(PDF)
	@$(PY) -m report summary $(BUILD)/started "$$RUN_LOG"

test: .venv/.installed ## style, types and tests; nothing is downloaded
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m pytest -n auto --maxprocesses=4

lab: .venv/.installed ## open JupyterLab
	@$(PY) -m jupyter lab

submission: .venv/.installed ## LASTNAME=… FIRSTNAME=… ID=…: the zip to hand in
	@$(PY) -m report check_name "$$LASTNAME" "$$FIRSTNAME" "$$ID"
	@$(MAKE) --no-print-directory report
	@$(PY) -m report submission "$$LASTNAME" "$$FIRSTNAME" "$$ID"

colab: .venv/.installed ## REPO=owner/name: write the repository's address and the Colab badges
	@$(PY) -m report colab "$$REPO"

study: data/.ready ## train what is not recorded; BUDGET=seconds JOBS=runs at the same time FULL=1 on a GPU
	@$(PY) -m studies $(if $(BUDGET),--budget $(BUDGET)) $(if $(JOBS),--jobs $(JOBS)) $(if $(FULL),--full)

bench: data/.ready ## measure time and memory of the heads, operations of a step, images per second, runs at once
	@$(PY) -m benchmarks.head_costs
	@$(PY) -m benchmarks.operations
	@$(PY) -m benchmarks.throughput
	@$(PY) -m benchmarks.together

clean: ## remove stamps, the smoke profile's files and caches
	rm -rf .build .smoke .pytest_cache .ruff_cache .hypothesis $(wildcard */__pycache__ */*/__pycache__)

.venv/.installed: results/requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is missing or older than 3.10: install Python or run make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(PY) -m pip install --disable-pip-version-check -r results/requirements.lock
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

data/.ready: | .venv/.installed
	@$(PY) -m studies data
	@touch $@

# executing in place makes the notebook newer than its inputs, and the stamp newer than the notebook
$(BUILD)/%.done: notebooks/%.ipynb $(INPUTS) $(if $(RETRAIN),FORCE) | data/.ready
	@mkdir -p $(BUILD)
	@$(PY) -m report execute $<
	@touch $@

# a notebook's new records are no reason to execute those before it again
$(BUILD)/report.done: report/report.ipynb $(STAMPS) $(INPUTS)
	@touch $(STAMPS)
	@$(PY) -m report execute $<
	@touch $@

$(PDF): $(BUILD)/report.done $(LAYOUT) $(INPUTS) $(wildcard $(OUT)figures/*.png)
	@$(PY) -m report pdf
