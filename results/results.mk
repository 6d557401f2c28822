# How every table of results/ is made; part of ../Makefile, whose variables it uses.

SAMPLE := runs/nih14-sample
.PHONY: results release prior-method results-sample seeds experiments

results: study
	@mkdir -p results/phantom
	@cp $(STUDY)/evaluate/*.csv $(STUDY)/evaluate/mean_images.png $(STUDY)/train/log.csv results/phantom/
	@echo "results/phantom/ is made from $(STUDY)/"

# everything below needs real images
NEEDS_DATA = @test -d "$(CXR_STN_DATA)/nih14-sample" || { echo "CXR_STN_DATA must be a folder with nih14-sample and lungmask-dev" >&2; exit 1; }
NIH        = -p data_dir $(CXR_STN_DATA)/nih14-sample
LUNGMASK   = -p data_dir $(CXR_STN_DATA)/lungmask-dev
TEMPLATE   = -p template_dir $(CXR_STN_DATA)/nih14-sample
# a baseline as soon as `make prior-method` has trained it; a comment behind the value would be part of it
PRIOR      = $(wildcard runs/prior_method/aligner.safetensors)

# the aligner that ships with the package: trained on the sample's training images and phantoms
release: $(READY)
	$(NEEDS_DATA)
	@mkdir -p runs/release cxr_stn/released
	$(BIN)/papermill nbs/train.ipynb runs/release/train.ipynb -f $(SETS)/release.yaml $(NIH) --log-output
	@cp runs/release/aligner.safetensors cxr_stn/released/chest.safetensors
	@cp runs/release/log.csv results/nih14-sample/

# the method's first implementation, with the same images, networks and time: a baseline of the released aligner
prior-method: $(READY)
	$(NEEDS_DATA)
	@mkdir -p runs/prior_method
	$(BIN)/papermill nbs/train.ipynb runs/prior_method/train.ipynb -f $(SETS)/prior_method.yaml $(NIH) --log-output

# the released aligner (and the prior method, if it was trained), judged on images of other hospitals with lung masks,
# and on held-out images of the sample
results-sample: $(READY)
	$(NEEDS_DATA)
	@mkdir -p $(SAMPLE) results/lungmask-dev results/nih14-sample
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/lungmask.ipynb -f $(SETS)/evaluate_lungmask.yaml $(LUNGMASK) $(TEMPLATE) \
	  $(if $(PRIOR),-f $(SETS)/evaluate_lungmask_prior_method.yaml) -p out_dir $(SAMPLE)/lungmask
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/test.ipynb -f $(SETS)/evaluate_sample.yaml $(NIH) $(TEMPLATE) \
	  $(if $(PRIOR),-f $(SETS)/evaluate_sample_prior_method.yaml) -p out_dir $(SAMPLE)/test
	@cp $(SAMPLE)/lungmask/*.csv $(SAMPLE)/lungmask/mean_images.png results/lungmask-dev/
	@cp $(SAMPLE)/test/*.csv results/nih14-sample/

# the released recipe with other seeds, beside the released aligner: how much of its figures is chance
seeds: $(READY)
	$(NEEDS_DATA)
	@mkdir -p runs/release_1 runs/release_2 $(SAMPLE) results/lungmask-dev/seeds
	for seed in 1 2; do $(BIN)/papermill nbs/train.ipynb runs/release_$$seed/train.ipynb -f $(SETS)/release.yaml $(NIH) \
	  -p seed $$seed -p out_dir runs/release_$$seed --log-output; done
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/seeds.ipynb -f $(SETS)/evaluate_seeds.yaml $(LUNGMASK) -p out_dir $(SAMPLE)/seeds
	@cp $(SAMPLE)/seeds/masks.csv $(SAMPLE)/seeds/synthetic_warps.csv results/lungmask-dev/seeds/

# --- experiments: every run with one thread, so that `make -j2 experiments` uses two cores and changes no digit -------

ALL      := $(notdir $(basename $(wildcard $(SETS)/experiments/*.yaml)))
PLANNED  := $(if $(CXR_STN_DATA),$(ALL),$(filter-out sample,$(ALL)))
COMPARED := $(PLANNED) $(foreach arm,center_crop oracle,$(addsuffix -$(arm),$(filter $(PLANNED),$(notdir $(basename \
              $(shell grep -l $(arm) $(SETS)/experiments/*.yaml))))))
KEPT     := areas.csv classes.csv subgroups.csv measures.csv bootstrap.csv verdict.md forest.png

.SECONDARY: $(PLANNED:%=runs/classify/%.ipynb)
runs/classify/%.ipynb: $(SETS)/experiments/%.yaml | $(READY)
	$(call execute,sweep,-f $< $(if $(filter sample,$*),$(NIH)))

# experiment, the arm that all others are compared with
define compare
	@mkdir -p runs/compare $(@D)
	$(BIN)/papermill nbs/compare.ipynb runs/compare/$(notdir $(@D)).ipynb -p experiment runs/classify/$(1) -p comparator $(2) \
	  -p out_dir runs/compare/$(notdir $(@D)) --no-progress-bar
	@cp $(KEPT:%=runs/compare/$(notdir $(@D))/%) $(@D)/
endef

results/experiments/%-center_crop/classes.csv: runs/classify/%.ipynb
	$(call compare,$*,center_crop)
results/experiments/%-oracle/classes.csv: runs/classify/%.ipynb
	$(call compare,$*,oracle)
results/experiments/%/classes.csv: runs/classify/%.ipynb
	$(call compare,$*,standard)

experiments: export OMP_NUM_THREADS := 1
experiments: $(COMPARED:%=results/experiments/%/classes.csv)
	$(BIN)/papermill nbs/experiments.ipynb runs/compare/experiments.ipynb -p out_dir runs/compare/experiments --no-progress-bar
	@cp runs/compare/experiments/{primary.csv,dose_response.png,primary.png} results/experiments/
