# cxr_stn: everything here runs on a fresh machine that has Python 3.11 to 3.13, pip and make.
# `make` alone says what there is. Decisions of the study are not made here, but in nbs/params/.

## PYTHON=python3.12  VENV=folder   the Python and the place of the environment
## INSTALL=no VENV=folder           use an environment as it is (conda: VENV=$CONDA_PREFIX)
## PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"  a smaller torch, without GPU
## PIP_ARGS="-c constraints.txt"    the versions behind the published results
## WORKERS=1                        processes that test at once
## CXR_STN_DATA=folder              real images for what wants them; tests skip without

PYTHON  ?= python3
VENV    ?= .venv
INSTALL ?= yes
WORKERS ?= 2

BIN   := $(abspath $(VENV))/bin
STAMP := $(VENV)/.cxr_stn-installed
STUDY := runs/study
SETS  := nbs/params
# with INSTALL=no the environment in VENV is used as it is, and the package from this folder
READY := $(if $(filter yes,$(INSTALL)),$(STAMP))
export PYTHONPATH := $(if $(READY),$(PYTHONPATH),$(CURDIR))
export PYTHONUNBUFFERED := 1
# this environment's kernel, before any other of the same name
export JUPYTER_PREFER_ENV_PATH := 1
# notebooks keep their pictures, which a matplotlib backend set from outside would take from them
unexport MPLBACKEND
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-slow check gpu-check study notebooks readme export docs clean
# the texts behind the targets, then the lines above
help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2} \
	  /^## / {more = more substr($$0, 4) "\n"} END {printf "\n%s", more}' $(MAKEFILE_LIST)

# --- tests: those in tests/ execute ablate.ipynb and train.ipynb ------------------------------------------------
test: check ## install, check that notebooks and modules agree, run all tests (8 to 15 minutes)
	@echo "== the tests inside the notebooks"
	@OMP_NUM_THREADS=1 $(BIN)/nbdev_test --skip_file_re '^([_.]|ablate|train)' --n_workers $(WORKERS) --pause 0.5 --timing
	@echo "== the other tests"
	@mkdir -p runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m slipcover --source cxr_stn --omit cxr_stn/_modidx.py --missing-width 9999 --out runs/coverage.txt \
	  -m pytest -q -m 'not slow' -n $(WORKERS) --dist loadscope --no-loadscope-reorder
	@echo "== lines of the package that these tests ran, without those in the notebooks; which they missed: runs/coverage.txt"
	@awk 'NF {printf "%-40s %7s %7s %7s\n", $$1, $$2, $$3, $$4}' runs/coverage.txt
test-slow: $(READY) ## the tests that take long: interruptions, several processes, the site (30 minutes)
	@$(BIN)/python -m pytest -q -m slow
check: $(READY) ## whether cxr_stn/, nbs/ and README.md are in sync; ruff and mypy (30 seconds)
	@echo "== are modules, notebooks and README.md in sync?"
	@$(BIN)/python tools/notebooks.py check
	@echo "== ruff and mypy"
	@$(BIN)/ruff check --quiet --no-cache
	@$(BIN)/mypy --no-error-summary
gpu-check: $(READY) ## whether a GPU agrees with the CPU, waits, rates and memory, into results/benchmarks/gpu.md (minutes, on a machine with a GPU)
	@$(BIN)/python benchmarks/gpu.py

# --- study: each step is a notebook, executed under another name and renamed when it is whole -------------------
# notebook, its parameters: executes nbs/NOTEBOOK.ipynb into the target of the rule
define execute
	@mkdir -p $(@D)
	@echo "== $(1): nbs/$(1).ipynb -> $@"
	@start=$$SECONDS; part=$(@D)/.part-$(@F); \
	  $(BIN)/papermill nbs/$(1).ipynb $$part $(2) --log-output --progress-bar \
	    || { echo "$(1) failed or was interrupted; how far it came is in $$part. The same command goes on from here." >&2; exit 1; }; \
	  mv $$part $@; echo "== $(1): done in $$((SECONDS - start)) s"
endef

$(STUDY)/train.ipynb: nbs/train.ipynb $(SETS)/phantom.yaml | $(READY)
	$(call execute,train,-f $(SETS)/phantom.yaml -p out_dir $(STUDY)/train)
$(STUDY)/evaluate.ipynb: nbs/evaluate.ipynb $(SETS)/evaluate_phantom.yaml $(STUDY)/train.ipynb
	$(call execute,evaluate,-f $(SETS)/evaluate_phantom.yaml -p checkpoint $(STUDY)/train -p out_dir $(STUDY)/evaluate)
$(STUDY)/align.ipynb: nbs/align.ipynb $(STUDY)/train.ipynb
	$(call execute,align,-p checkpoint $(STUDY)/train -p out_dir $(STUDY)/align)
$(STUDY)/sweep.ipynb: nbs/sweep.ipynb nbs/classify.ipynb $(SETS)/sweep_phantom.yaml $(SETS)/classify_phantom_study.yaml $(STUDY)/train.ipynb
	$(call execute,sweep,-f $(SETS)/sweep_phantom.yaml -p out_dir $(STUDY)/sweep)
$(STUDY)/compare.ipynb: nbs/compare.ipynb $(STUDY)/sweep.ipynb
	$(call execute,compare,-p experiment $(STUDY)/sweep/phantom -p out_dir $(STUDY)/compare)

study: $(patsubst %,$(STUDY)/%.ipynb,train evaluate align sweep compare) ## install, then the study on synthetic radiographs, into runs/study/ (about 10 minutes)
	@printf '%s\n' '' 'The study on synthetic radiographs is complete. To read, each with a folder of its files:' $(^:%='  %')

include results/results.mk results/real.mk results/nih.mk

# --- environment: a stamp is written last, so that an installation that broke off is repeated -----------------
install: $(READY) ## the virtual environment in .venv alone (minutes)

$(STAMP): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v < (3, 14) and f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "making a virtual environment in $(VENV)"; \
	  $(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	    $(PYTHON) -m venv --without-pip --clear $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }; \
	fi
	@echo "installing cxr_stn and what it needs into $(VENV); the first time this takes minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@touch $@

# --- notebooks ------------------------------------------------------------------------------------------------
export: $(READY) ## cxr_stn/ from the notebooks, and the notebooks cleaned (10 seconds)
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
readme: $(READY) ## README.md from nbs/index.ipynb (5 seconds)
	@$(BIN)/python tools/notebooks.py readme
notebooks: $(READY) ## execute every notebook in place, then export and readme (15 minutes)
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/notebooks.py execute
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/notebooks.py readme
docs: $(READY) ## the site of tasks, notebooks and modules, warnings being errors, into _docs/html (2 minutes)
	@$(BIN)/python -m sphinx -W --keep-going -q -c docs -d _docs/doctrees . _docs/html
	@echo "== the site: _docs/html/index.html"
clean: ## remove runs/study/ and what tests leave behind (at once)
	rm -rf $(STUDY) build dist _proc _docs docs/api .pytest_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	find . \( -name .ipynb_checkpoints -o -name '.part-*' \) -not -path './.venv/*' -prune -exec rm -rf {} +
