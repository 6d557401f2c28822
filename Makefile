# cxr_stn: everything here runs on a fresh machine that has Python 3.11 to 3.13, pip and make.
# `make` alone says what there is.

PYTHON   ?= python3
VENV     ?= .venv
INSTALL  ?= yes
PIP_ARGS ?=
WORKERS  ?= 2
RUNS     ?= runs

BIN    := $(abspath $(VENV))/bin
STAMP  := $(VENV)/.cxr_stn-installed
STUDY  := $(RUNS)/study
SOURCE := $(wildcard cxr_stn/*.py)

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
.PHONY: help install test test-slow check study results release reference results-sample seeds experiments notebooks readme export clean

help:
	@echo 'make test       install, check that notebooks and modules agree, run all tests   (up to 20 minutes)'
	@echo 'make study      install, then the study on made-up films, into $(STUDY)/        (about 8 minutes)'
	@echo 'make results    the study, and its tables into results/phantom/                  (about 8 minutes)'
	@echo 'make release    train the released aligner on real films in CXR_STN_DATA         (40 minutes)'
	@echo 'make reference  train the method it is compared with on the same films           (an hour)'
	@echo 'make results-sample  judge them on real films in CXR_STN_DATA, into results/     (3 minutes)'
	@echo 'make seeds      train the released recipe with two more seeds, and judge them    (an hour)'
	@echo 'make experiments    the classifier with and without aligning, many times, into results/ (5 hours; -j2: half)'
	@echo 'make test-slow  the tests that take long: interruptions, several processes       (40 minutes)'
	@echo 'make install    the virtual environment in $(VENV) alone                          (minutes)'
	@echo 'make check      whether cxr_stn/, nbs/ and README.md are in step, and ruff        (10 seconds)'
	@echo 'make export     cxr_stn/*.py from the notebooks, and the notebooks cleaned        (10 seconds)'
	@echo 'make readme     README.md from nbs/index.ipynb                                    (5 seconds)'
	@echo 'make notebooks  execute every notebook in place, then export and readme           (minutes)'
	@echo 'make clean      remove $(STUDY)/ and what tests leave behind                     (at once)'
	@echo
	@echo 'PYTHON=python3.12      the Python to make the environment with'
	@echo 'VENV=folder            another place for the environment'
	@echo 'INSTALL=no VENV=folder use an environment as it is (conda: VENV=$$CONDA_PREFIX)'
	@echo 'PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"  a smaller torch, without GPU'
	@echo 'PIP_ARGS="-c constraints.txt"  the versions that it is developed with'
	@echo 'WORKERS=1              notebooks tested at once'
	@echo 'CXR_STN_DATA=folder    real films for the tests that want them; they are skipped without'

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
	@echo "installed"

# --- tests ----------------------------------------------------------------------------------------------------

check: $(READY)
	@echo "== are modules, notebooks and README.md in step?"
	@$(BIN)/python tools/notebooks.py check
	@echo "== ruff"
	@$(BIN)/ruff check --quiet --no-cache

test: check
	@echo "== the tests inside the notebooks"
	@OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS) --pause 0.5 --timing
	@echo "== the other tests"
	@$(BIN)/python -m pytest -q -m 'not slow'

test-slow: $(READY)
	@$(BIN)/python -m pytest -q -m slow

# --- study: each step is a notebook, executed under another name and renamed when it is whole -------------------

STEPS := train evaluate align repeat compare
TRAINED := $(STUDY)/train

train_ARGS    := -f nbs/params/phantom.yaml -p out_dir $(TRAINED)
evaluate_ARGS := -p checkpoint $(TRAINED) -p out_dir $(STUDY)/evaluate -p n_films 80 -p known_warps 40
align_ARGS    := -p checkpoint $(TRAINED) -p out_dir $(STUDY)/align
repeat_ARGS   := -p params_file nbs/params/classify_phantom_study.yaml -y 'parameters: {aligner: $(TRAINED)}' -p experiment phantom \
                 -y 'arms: [standard, aligned]' -y 'seeds: [0, 1, 2]' -p out_dir $(STUDY)/repeat
compare_ARGS  := -p experiment $(STUDY)/repeat/phantom -p out_dir $(STUDY)/compare

$(STUDY)/train.ipynb: nbs/params/phantom.yaml
$(STUDY)/evaluate.ipynb $(STUDY)/align.ipynb $(STUDY)/repeat.ipynb: $(STUDY)/train.ipynb
$(STUDY)/repeat.ipynb: nbs/classify.ipynb nbs/params/classify_phantom_study.yaml
$(STUDY)/compare.ipynb: $(STUDY)/repeat.ipynb

$(STEPS:%=$(STUDY)/%.ipynb): $(STUDY)/%.ipynb: nbs/%.ipynb $(SOURCE) | $(READY)
	@mkdir -p $(STUDY)
	@echo "== $*: nbs/$*.ipynb -> $@"
	@start=$$SECONDS; part=$(STUDY)/.part-$*.ipynb; \
	  $(BIN)/papermill nbs/$*.ipynb $$part $($*_ARGS) --log-output --progress-bar \
	    || { echo "$* failed or was interrupted; how far it came is in $$part. The same command goes on from here." >&2; exit 1; }; \
	  mv $$part $@; echo "== $*: done in $$((SECONDS - start)) s"

study: $(STEPS:%=$(STUDY)/%.ipynb)
	@echo
	@echo "The study on made-up films is complete. Executed notebooks, to read:"
	@for step in $(STEPS); do echo "  $(STUDY)/$$step.ipynb, and its files in $(STUDY)/$$step/"; done

# --- results: the curated tables, made from the study and, where there are real films, from the sample ----------

RELEASE := $(RUNS)/release
SAMPLE  := $(RUNS)/nih14-sample
FILMS   := @test -d "$(CXR_STN_DATA)/nih14-sample" || { echo "CXR_STN_DATA must be a folder with nih14-sample and lungmask-dev" >&2; exit 1; }
COMMA   := ,
PEERS   ?= stretch, letterbox, ecc, simpleitk, kornia
OTHERS  := $(if $(wildcard $(RUNS)/reference/aligner.safetensors),$(COMMA) reference=$(RUNS)/reference)

results: study
	@mkdir -p results/phantom
	@cp $(STUDY)/evaluate/*.csv $(STUDY)/evaluate/mean_films.png $(STUDY)/train/log.csv results/phantom/
	@echo "results/phantom/ is made from $(STUDY)/"

# the aligner that ships with the package: trained on the sample's training films and phantoms
release: $(READY)
	$(FILMS)
	@mkdir -p $(RELEASE) cxr_stn/released
	$(BIN)/papermill nbs/train.ipynb $(RELEASE)/train.ipynb -f nbs/params/release.yaml \
	  -p data_dir $(CXR_STN_DATA)/nih14-sample -p out_dir $(RELEASE) --log-output
	@cp $(RELEASE)/aligner.safetensors cxr_stn/released/chest.safetensors
	@echo "cxr_stn/released/chest.safetensors is made from $(RELEASE)/"

# the method's first implementation, with the same films, networks and time: a peer of the released aligner
reference: $(READY)
	$(FILMS)
	@mkdir -p $(RUNS)/reference
	$(BIN)/papermill nbs/train.ipynb $(RUNS)/reference/train.ipynb -f nbs/params/reference.yaml \
	  -p data_dir $(CXR_STN_DATA)/nih14-sample -p out_dir $(RUNS)/reference --log-output

# the released aligner, judged on films of other hospitals with lung masks, and on held-out films of the sample
results-sample: $(READY)
	$(FILMS)
	@mkdir -p $(SAMPLE) results/lungmask-dev results/nih14-sample
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/lungmask.ipynb -p data masked -p data_dir $(CXR_STN_DATA)/lungmask-dev \
	  -p checkpoint chest -p out_dir $(SAMPLE)/lungmask -y 'n_films: null' -p known_warps 121 \
	  -y 'peers: [$(PEERS)$(OTHERS)]' -p peer_dir $(CXR_STN_DATA)/nih14-sample
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/test.ipynb -p data nih -p data_dir $(CXR_STN_DATA)/nih14-sample \
	  -p checkpoint chest -p out_dir $(SAMPLE)/test -y 'n_films: null' -p known_warps 123 \
	  -y 'peers: [stretch, letterbox, ecc$(OTHERS)]' -p peer_dir $(CXR_STN_DATA)/nih14-sample
	@cp $(SAMPLE)/lungmask/*.csv $(SAMPLE)/lungmask/mean_films.png results/lungmask-dev/
	@cp $(SAMPLE)/test/*.csv results/nih14-sample/
	@cp $(RELEASE)/log.csv results/nih14-sample/ 2>/dev/null || true
	@echo "results/lungmask-dev/ and results/nih14-sample/ are made from $(SAMPLE)/"

# the released recipe with other seeds, beside the released aligner: how much of its figures is chance
SEEDS := 1 2
EACH  := $(foreach seed,$(SEEDS),seed_$(seed)=$(RELEASE)_$(seed))

seeds: $(READY)
	$(FILMS)
	@mkdir -p $(SEEDS:%=$(RELEASE)_%) $(SAMPLE) results/lungmask-dev/seeds
	for seed in $(SEEDS); do \
	  $(BIN)/papermill nbs/train.ipynb $(RELEASE)_$$seed/train.ipynb -f nbs/params/release.yaml -p seed $$seed \
	    -p data_dir $(CXR_STN_DATA)/nih14-sample -p out_dir $(RELEASE)_$$seed --log-output; \
	done
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/seeds.ipynb -p data masked -p data_dir $(CXR_STN_DATA)/lungmask-dev \
	  -p checkpoint chest -p out_dir $(SAMPLE)/seeds -y 'n_films: null' -p known_warps 121 \
	  -y 'peers: [$(subst $() ,$(COMMA) ,$(EACH))]'
	@cp $(SAMPLE)/seeds/masks.csv $(SAMPLE)/seeds/known_warps.csv results/lungmask-dev/seeds/
	@echo "results/lungmask-dev/seeds/ is made from $(SAMPLE)/seeds/"

# --- experiments: every run with one thread, so that `make -j2 experiments` uses two cores and changes no digit -------

EXPERIMENTS := positive negative close pose_05 pose_10 films_250 films_2000 joint joint_aligned $(if $(CXR_STN_DATA),sample)
CROPPED     := $(filter positive negative close sample,$(EXPERIMENTS))
ORACLES     := $(filter positive close,$(EXPERIMENTS))
TRIED       := $(RUNS)/classify
COMPARED    := $(RUNS)/compare
sample_ARGS  = -p data_dir $(CXR_STN_DATA)/nih14-sample
KEPT        := areas.csv classes.csv subgroups.csv measures.csv bootstrap.csv verdict.md forest.png

experiments: results/experiments/primary.csv
.SECONDARY: $(EXPERIMENTS:%=$(TRIED)/%.ipynb)

$(TRIED)/%.ipynb: nbs/params/experiments/%.yaml | $(READY)
	@mkdir -p $(TRIED)
	OMP_NUM_THREADS=1 $(BIN)/papermill nbs/repeat.ipynb $(TRIED)/.part-$*.ipynb -f $< -p out_dir $(TRIED) $($*_ARGS) --log-output
	@mv $(TRIED)/.part-$*.ipynb $@

define compare # name, reference
	@mkdir -p $(COMPARED) $(@D)
	OMP_NUM_THREADS=1 $(BIN)/papermill nbs/compare.ipynb $(COMPARED)/$(notdir $(@D)).ipynb -p experiment $(TRIED)/$(1) \
	  -p reference $(2) -p out_dir $(COMPARED)/$(notdir $(@D)) --no-progress-bar
	@cp $(KEPT:%=$(COMPARED)/$(notdir $(@D))/%) $(@D)/
endef

results/experiments/%-lung_crop/classes.csv: $(TRIED)/%.ipynb
	$(call compare,$*,lung_crop)

results/experiments/%-oracle/classes.csv: $(TRIED)/%.ipynb
	$(call compare,$*,oracle)

results/experiments/%/classes.csv: $(TRIED)/%.ipynb
	$(call compare,$*,standard)

results/experiments/primary.csv: $(EXPERIMENTS:%=results/experiments/%/classes.csv) $(CROPPED:%=results/experiments/%-lung_crop/classes.csv) \
                                 $(ORACLES:%=results/experiments/%-oracle/classes.csv)
	$(BIN)/papermill nbs/experiments.ipynb $(COMPARED)/experiments.ipynb -p out_dir $(COMPARED)/experiments --no-progress-bar
	@cp $(COMPARED)/experiments/{primary.csv,dose_response.png,primary.png} results/experiments/

# --- notebooks ------------------------------------------------------------------------------------------------

export: $(READY)
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@echo "cxr_stn/ is exported, nbs/ is clean"

readme: $(READY)
	@$(BIN)/python tools/notebooks.py readme

notebooks: $(READY)
	@$(BIN)/nbdev_export
	@$(BIN)/python tools/notebooks.py execute
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/notebooks.py readme

clean:
	rm -rf $(STUDY) build dist _proc _docs .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	find . \( -name .ipynb_checkpoints -o -name '.part-*' \) -not -path './.venv/*' -prune -exec rm -rf {} +
