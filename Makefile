# cxr_stn: everything here runs on a fresh machine that has Python 3.11 to 3.13, pip and make.
# `make` alone says what there is. Decisions of the study are not made here, but in nbs/params/.

PYTHON   ?= python3
VENV     ?= .venv
INSTALL  ?= yes
PIP_ARGS ?=
WORKERS  ?= 2

BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.cxr_stn-installed
STUDY  := runs/study
SETS   := nbs/params

# With INSTALL=no the environment in VENV is used as it is, and the package from this folder.
ifeq ($(INSTALL),yes)
READY := $(STAMP)
else
READY :=
export PYTHONPATH := $(CURDIR)
endif

# This environment's kernel, before any other of the same name; and notebooks keep their pictures,
# which a matplotlib backend set from outside would take from them.
export JUPYTER_PREFER_ENV_PATH := 1
unexport MPLBACKEND
export PYTHONUNBUFFERED := 1

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-slow check study notebooks readme export clean

help:
	@echo 'make test       install, check that notebooks and modules agree, run all tests   (up to 20 minutes)'
	@echo 'make study      install, then the study on synthetic radiographs, into $(STUDY)/ (about 10 minutes)'
	@echo 'make results    the study, and its tables into results/phantom/                  (about 10 minutes)'
	@echo 'make release    train the released aligner on real images in CXR_STN_DATA        (40 minutes)'
	@echo 'make prior-method    train the method it is compared with on the same images     (an hour)'
	@echo 'make results-sample  judge them on real images in CXR_STN_DATA, into results/    (5 minutes)'
	@echo 'make seeds      train the released recipe with two more seeds, and judge them    (an hour)'
	@echo 'make experiments    the classifier with and without aligning, many times, into results/ (5 hours; -j2: half)'
	@echo 'make test-slow  the tests that take long: interruptions, several processes       (20 minutes)'
	@echo 'make install    the virtual environment in $(VENV) alone                          (minutes)'
	@echo 'make check      whether cxr_stn/, nbs/ and README.md are in sync; ruff and mypy   (30 seconds)'
	@echo 'make export     cxr_stn/ from the notebooks, and the notebooks cleaned            (10 seconds)'
	@echo 'make readme     README.md from nbs/index.ipynb                                    (5 seconds)'
	@echo 'make notebooks  execute every notebook in place, then export and readme           (15 minutes)'
	@echo 'make clean      remove $(STUDY)/ and what tests leave behind                     (at once)'
	@echo
	@echo 'PYTHON=python3.12  VENV=folder   the Python and the place of the environment'
	@echo 'INSTALL=no VENV=folder           use an environment as it is (conda: VENV=$$CONDA_PREFIX)'
	@echo 'PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"  a smaller torch, without GPU'
	@echo 'PIP_ARGS="-c constraints.txt"    the versions behind the published results'
	@echo 'WORKERS=1                        notebooks tested at once'
	@echo 'CXR_STN_DATA=folder              real images for what wants them; tests skip without'

# --- environment: a stamp is written last, so that an installation that broke off is repeated -----------------

install: $(READY)

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

# --- tests ----------------------------------------------------------------------------------------------------

check: $(READY)
	@echo "== are modules, notebooks and README.md in sync?"
	@$(BIN)/python tools/notebooks.py check
	@echo "== ruff and mypy"
	@$(BIN)/ruff check --quiet --no-cache
	@$(BIN)/mypy --no-error-summary

test: check
	@echo "== the tests inside the notebooks"
	@OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS) --pause 0.5 --timing
	@echo "== the other tests"
	@$(BIN)/python -m pytest -q -m 'not slow'

test-slow: $(READY)
	@$(BIN)/python -m pytest -q -m slow

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

study: $(STUDY)/train.ipynb $(STUDY)/evaluate.ipynb $(STUDY)/align.ipynb $(STUDY)/sweep.ipynb $(STUDY)/compare.ipynb
	@echo
	@echo "The study on synthetic radiographs is complete. Executed notebooks, to read:"
	@for step in train evaluate align sweep compare; do echo "  $(STUDY)/$$step.ipynb, and its files in $(STUDY)/$$step/"; done

include results/results.mk

# --- notebooks ------------------------------------------------------------------------------------------------

export: $(READY)
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

readme: $(READY)
	@$(BIN)/python tools/notebooks.py readme

notebooks: $(READY)
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/notebooks.py execute
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/notebooks.py readme

clean:
	rm -rf $(STUDY) build dist _proc _docs .pytest_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	find . \( -name .ipynb_checkpoints -o -name '.part-*' \) -not -path './.venv/*' -prune -exec rm -rf {} +
