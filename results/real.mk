# The experiments on real radiographs that results/PROTOCOL.md announces; part of ../Makefile, whose variables it
# uses. Every run goes on where it was interrupted, with one thread: `make -j2 real` changes no digit.
REAL     := $(SETS)/real
COMPARED := $(notdir $(basename $(wildcard $(REAL)/comparisons/*.yaml)))
ALIGNERS := $(patsubst %,runs/real/aligner-%.ipynb,0 1 2 3 4 PA AP)
.PHONY: real
.PRECIOUS: runs/real/aligner-%.ipynb

# those of the folds and of the views begin with the one that has seen phantoms alone
runs/real/aligner-phantom.ipynb: nbs/train.ipynb $(SETS)/teacher.yaml $(REAL)/aligner_phantom.yaml | $(READY)
	$(call execute,train,-f $(SETS)/teacher.yaml -f $(REAL)/aligner_phantom.yaml -p data phantom)
$(ALIGNERS): runs/real/aligner-%.ipynb: runs/real/aligner-phantom.ipynb $(REAL)/aligner.yaml
	$(NEEDS_DATA)
	$(call execute,train,-f $(SETS)/teacher.yaml -f $(REAL)/aligner.yaml $(BOTH) -p out_dir runs/real/aligner-$* \
	  $(if $(filter PA AP,$*),-p train_view $*,-p n_folds 5 -p fold $*))

runs/classify/%.ipynb: $(REAL)/experiments/%.yaml $(REAL)/classify.yaml $(ALIGNERS)
	$(call execute,sweep,-f $< $(BOTH))

results/real/%/classes.csv: $(REAL)/comparisons/%.yaml runs/classify/cross_validation.ipynb runs/classify/$$(firstword $$(subst -, ,$$*)).ipynb
	$(compare_arms)

results/real/readers/readers.csv: nbs/readers.ipynb | $(READY)
	$(NEEDS_DATA)
	@mkdir -p runs/real $(@D)
	$(BIN)/papermill nbs/readers.ipynb runs/real/readers.ipynb -p out_dir runs/real/readers --no-progress-bar \
	  -p expert_dir $(CXR_STN_DATA)/nih14-expert-labels -p data_dir $(CXR_STN_DATA)/nih14-sample
	@cp runs/real/readers/{readers.csv,reports.csv,readers.png} $(@D)/

results/real/positioning/curve.csv: $(REAL)/positioning.yaml $(addprefix runs/classify/cross_validation,.ipynb _controls.ipynb _moved.ipynb)
	$(call read_curve,curve.csv interaction.csv interaction_findings.csv displacement.csv verdict.md curve.png)
results/real/learning_curve/curve.csv: $(REAL)/learning_curve.yaml $(addprefix runs/classify/,$(addsuffix .ipynb,patients_125 patients_250 patients_500 cross_validation))
	$(call read_curve,curve.csv differences.csv slope.csv curve.md verdict.md curve.png)
# the notebook and the folder of runs are named after the target's folder; kept: $(1)
define read_curve
	@mkdir -p runs/real $(@D)
	$(BIN)/papermill nbs/$(notdir $(@D)).ipynb runs/real/$(notdir $(@D)).ipynb -f $< --no-progress-bar
	@cp $(addprefix runs/real/$(notdir $(@D))/,$(1)) $(@D)/
endef

# where the networks look: those of the positive control on phantoms, those of the folds on radiographs with boxes
results/real/localisation/localisation.csv: $(SETS)/localisation.yaml runs/classify/positive.ipynb
	$(call look,localisation_positive,localisation.csv verdict.md hits.png)
results/real/localisation_boxes/localisation.csv: $(REAL)/localisation.yaml runs/classify/cross_validation.ipynb
	$(NEEDS_DATA)
	$(call look,real/localisation_boxes,localisation.csv examples.png,$(BOTH) -p boxes "$(CXR_STN_DATA)/nih14-sample/BBox_List_2017.csv")
define look
	@mkdir -p runs/real $(@D)
	$(BIN)/papermill nbs/localisation.ipynb runs/real/$(notdir $(@D)).ipynb -f $< $(3) --no-progress-bar
	@cp $(addprefix runs/$(1)/,$(2)) $(@D)/
endef

results/real/aligners/masks.csv: $(REAL)/evaluate_aligners.yaml $(ALIGNERS)
	@mkdir -p $(@D)
	$(BIN)/papermill nbs/evaluate.ipynb runs/real/aligners.ipynb -f $< $(LUNGMASK) -p out_dir runs/real/aligners --no-progress-bar
	@cp runs/real/aligners/masks.csv $(@D)/

real: export OMP_NUM_THREADS := 1
real: $(COMPARED:%=results/real/%/classes.csv) $(addprefix results/real/,readers/readers.csv aligners/masks.csv positioning/curve.csv learning_curve/curve.csv localisation/localisation.csv localisation_boxes/localisation.csv) ## the classifier on 1,397 real images, into results/real/ (12 hours; -j2: half)
	$(BIN)/papermill nbs/real.ipynb runs/real/real.ipynb -p out_dir runs/real/tables --no-progress-bar
	@cp runs/real/tables/{primary.csv,primary.md,primary.png} results/real/
	@cd runs/classify && sha256sum $(patsubst $(REAL)/experiments/%.yaml,%/*/predictions.parquet,$(wildcard $(REAL)/experiments/*.yaml)) > ../../results/real/predictions.sha256
