# How every table of results/ is made; part of ../Makefile, whose variables it uses.
SAMPLE     := runs/nih14-sample
NEEDS_DATA  = @test -d "$(CXR_STN_DATA)/nih14-sample" || { echo "CXR_STN_DATA must be a folder with nih14-sample, nih14-sample-2 and lungmask-dev" >&2; exit 1; }
NIH         = -p data_dir $(CXR_STN_DATA)/nih14-sample
BOTH        = -p data_dir "$(CXR_STN_DATA)/nih14-sample:$(CXR_STN_DATA)/nih14-sample-2"
LUNGMASK    = -p data_dir $(CXR_STN_DATA)/lungmask-dev
TEMPLATE    = -p template_dir $(CXR_STN_DATA)/nih14-sample
# a baseline as soon as `make prior-method` has trained it
PRIOR       = $(wildcard runs/prior_method/aligner.safetensors)
.PHONY: results release prior-method results-sample seeds experiments

results: study ## the study, and its tables into results/phantom/ (about 10 minutes)
	@mkdir -p results/phantom
	@cp $(STUDY)/evaluate/*.csv $(STUDY)/evaluate/mean_images.png $(STUDY)/train/log.csv results/phantom/
	@echo "results/phantom/ is made from $(STUDY)/"
runs/teacher.ipynb: $(SETS)/teacher.yaml | $(READY)
	$(NEEDS_DATA)
	$(call execute,train,-f $< $(NIH))
runs/second_teacher.ipynb: $(SETS)/second_teacher.yaml runs/teacher.ipynb
	$(call execute,train,-f $< $(BOTH))
runs/third_teacher.ipynb: $(SETS)/third_teacher.yaml runs/second_teacher.ipynb
	$(call execute,train,-f $< $(BOTH))
release: runs/third_teacher.ipynb ## train the released aligner, its teachers first, on real images in CXR_STN_DATA (2 hours)
	@mkdir -p runs/release cxr_stn/released
	$(BIN)/papermill nbs/train.ipynb runs/release/train.ipynb -f $(SETS)/release.yaml $(BOTH) --log-output
	@for kind in safetensors onnx; do cp runs/release/aligner.$$kind cxr_stn/released/chest.$$kind; done
	@cp runs/release/log.csv results/nih14-sample/
prior-method: $(READY) ## train the method it is compared with on the same images (an hour)
	$(NEEDS_DATA)
	@mkdir -p runs/prior_method
	$(BIN)/papermill nbs/train.ipynb runs/prior_method/train.ipynb -f $(SETS)/prior_method.yaml $(NIH) --log-output
results-sample: $(READY) ## judge them on real images in CXR_STN_DATA, into results/ (5 minutes)
	$(NEEDS_DATA)
	@mkdir -p $(SAMPLE) results/lungmask-dev results/nih14-sample
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/lungmask.ipynb -f $(SETS)/evaluate_lungmask.yaml $(LUNGMASK) $(TEMPLATE) \
	  $(if $(PRIOR),-f $(SETS)/evaluate_lungmask_prior_method.yaml) -p out_dir $(SAMPLE)/lungmask
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/test.ipynb -f $(SETS)/evaluate_sample.yaml $(NIH) $(TEMPLATE) \
	  $(if $(PRIOR),-f $(SETS)/evaluate_sample_prior_method.yaml) -p out_dir $(SAMPLE)/test
	@cp $(SAMPLE)/lungmask/*.csv $(SAMPLE)/lungmask/mean_images.png results/lungmask-dev/
	@cp $(SAMPLE)/test/*.csv results/nih14-sample/
	@mkdir -p results/{lungmask-dev,nih14-sample}/two_passes
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/two_passes.ipynb -f $(SETS)/evaluate_two_passes.yaml $(LUNGMASK) -p out_dir $(SAMPLE)/two_passes
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/two_passes_nih.ipynb -f $(SETS)/evaluate_two_passes.yaml $(BOTH) -p data nih -p synthetic_warps 196 \
	  -p out_dir $(SAMPLE)/two_passes_nih
	@cp $(SAMPLE)/two_passes/{masks,lung_maps,synthetic_warps,orientation}.csv results/lungmask-dev/two_passes/
	@cp $(SAMPLE)/two_passes_nih/{synthetic_warps,orientation}.csv results/nih14-sample/two_passes/
seeds: runs/third_teacher.ipynb ## train the released recipe with two more seeds, and judge them (1 hour)
	@mkdir -p $(SAMPLE) results/lungmask-dev/seeds
	for set in $(SETS)/release_*.yaml; do run=runs/$$(basename $$set .yaml); mkdir -p $$run; \
	  $(BIN)/papermill nbs/train.ipynb $$run/train.ipynb -f $(SETS)/release.yaml -f $$set $(BOTH) --log-output; done
	$(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/seeds.ipynb -f $(SETS)/evaluate_seeds.yaml $(LUNGMASK) -p out_dir $(SAMPLE)/seeds
	@cp $(SAMPLE)/seeds/{masks,lung_maps,synthetic_warps}.csv results/lungmask-dev/seeds/
	for seed in 0 1 2; do [ $$seed = 0 ] && aligner=chest || aligner=runs/release_$$seed; \
	  $(BIN)/papermill nbs/evaluate.ipynb $(SAMPLE)/seed_$$seed.ipynb -f $(SETS)/evaluate_seeds_nih.yaml $(BOTH) -p checkpoint $$aligner -p out_dir $(SAMPLE)/seed_$$seed; \
	  mkdir -p results/nih14-sample/seeds/$$seed; cp $(SAMPLE)/seed_$$seed/{synthetic_warps,orientation,confidence}.csv results/nih14-sample/seeds/$$seed/; done

# --- experiments: every run with one thread, so that `make -j2 experiments` uses two cores and changes no digit -------
COMPARISONS := $(notdir $(basename $(wildcard $(SETS)/comparisons/*.yaml)))
KEPT        := areas.csv classes.csv subgroups.csv measures.csv bootstrap.csv verdict.md forest.png

.PRECIOUS: runs/classify/%.ipynb
runs/classify/%.ipynb: $(SETS)/experiments/%.yaml | $(READY)
	$(call execute,sweep,-f $< $(if $(filter sample,$*),$(NIH)))

# a comparison is named after its experiment, and after the comparator unless that is `standard`
.SECONDEXPANSION:
results/experiments/%/classes.csv: $(SETS)/comparisons/%.yaml runs/classify/$$(firstword $$(subst -, ,$$*)).ipynb
	$(compare_arms)

define compare_arms
	@mkdir -p runs/compare $(@D)
	$(BIN)/papermill nbs/compare.ipynb runs/compare/$*.ipynb -f $< --no-progress-bar
	@cp $(KEPT:%=runs/compare/$*/%) $(@D)/
	@if [ -e runs/compare/$*/folds.csv ]; then cp runs/compare/$*/folds.csv $(@D)/; fi
endef

experiments: export OMP_NUM_THREADS := 1
experiments: $(patsubst %,results/experiments/%/classes.csv,$(filter-out $(if $(CXR_STN_DATA),,sample%),$(COMPARISONS))) ## the classifier with and without aligning, many times, into results/ (5 hours; -j2: half)
	$(BIN)/papermill nbs/experiments.ipynb runs/compare/experiments.ipynb -p out_dir runs/compare/experiments --no-progress-bar
	@cp runs/compare/experiments/{primary.csv,dose_response.png,primary.png} results/experiments/
