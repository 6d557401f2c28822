# The study on all of ChestX-ray14 in one command; part of ../Makefile, whose variables it uses. Every step is a
# notebook with a parameter file of nbs/params. A step that is done is skipped, one that was interrupted goes on;
# `runs` may be a link to a larger disk.

## DATA=folder DEVICES=8            make nih: ChestX-ray14 in its official layout; how many GPUs (1)
## PLAN=1                           make nih: only print the steps with hours and disk
## EXPERT=folder                    make nih: labels of radiologists (all_findings, four_findings), if not in DATA
## BUDGET=nbs/params/rehearsal      make nih: parameter files that win over those of nbs/params

DEVICES ?= 1
EXPERT  ?= $(firstword $(wildcard $(DATA)/nih14-expert-labels) $(if $(wildcard $(DATA)/*_findings/test_labels.csv),$(DATA)))
FULL    := runs/nih$(addprefix -,$(notdir $(BUDGET)))
# what was made with a budget is not the planned run
TABLES  := $(if $(BUDGET),$(FULL)/results,results/nih)
SETTING  = -f $(SETS)/$(1).yaml $(if $(BUDGET),$(addprefix -f ,$(wildcard $(BUDGET)/$(1).yaml)))
FILES    = $(wildcard $(1:%=$(SETS)/%.yaml) $(if $(BUDGET),$(1:%=$(BUDGET)/%.yaml)))
IMAGES   = -p data_dir "$(DATA)"
SWEEP    = $(call SETTING,sweep_nih) $(IMAGES)
NEEDS_IMAGES = @test -d "$(DATA)" || { echo "DATA must be the folder of ChestX-ray14: make nih DATA=folder" >&2; exit 1; }
.PHONY: nih

ifdef PLAN
nih: | $(READY)
	@$(BIN)/python -m cxr_stn.study.full_run plan devices=$(DEVICES) $(if $(DATA),data_dir="$(DATA)") $(addprefix budget=,$(BUDGET))
else
nih: $(TABLES)/README.md ## the study on all of ChestX-ray14, into results/nih/ (about 12 hours on one GPU by estimate; PLAN=1 prints it)
endif

# changes with what is asked, and then every step looks again whether it is done
$(FULL)/asked.txt: FORCE
	$(NEEDS_IMAGES)
	@mkdir -p $(@D)
	@asked='DATA=$(DATA) BUDGET=$(BUDGET)'; [ "$$(cat $@ 2>/dev/null)" = "$$asked" ] || echo "$$asked" > $@
FORCE:

$(FULL)/prepare.ipynb: nbs/prepare.ipynb $(FULL)/asked.txt $(call FILES,nih align_nih sweep_nih classify_nih) | $(READY)
	$(call execute,prepare,$(IMAGES) -p devices $(DEVICES) $(addprefix -p budget ,$(BUDGET)) -p out_dir $(FULL)/prepare)
# on one GPU, so that the aligner does not depend on how many there are
$(FULL)/train.ipynb: nbs/train.ipynb $(FULL)/prepare.ipynb
	$(call execute,train,$(call SETTING,nih) $(IMAGES) -p out_dir $(FULL)/train)
$(FULL)/evaluate.ipynb: nbs/evaluate.ipynb $(call FILES,evaluate_nih) $(FULL)/train.ipynb
	$(call execute,evaluate,$(call SETTING,evaluate_nih) $(IMAGES) -p checkpoint $(FULL)/train -p out_dir $(FULL)/evaluate)
$(FULL)/align.ipynb: nbs/align.ipynb $(FULL)/train.ipynb
	$(call execute,align,$(call SETTING,align_nih) $(IMAGES) -p checkpoint $(FULL)/train -p out_dir $(FULL)/align)
$(FULL)/sweep.ipynb: nbs/sweep.ipynb nbs/classify.ipynb $(FULL)/train.ipynb
	$(if $(filter-out 1,$(DEVICES)),$(share))
	$(call execute,sweep,$(SWEEP))
$(FULL)/compare.ipynb: nbs/compare.ipynb $(call FILES,compare_nih) $(FULL)/sweep.ipynb
	$(call execute,compare,$(call SETTING,compare_nih) -p experiment $(FULL)/classify -p out_dir $(FULL)/compare)
$(FULL)/experts.ipynb: nbs/experts.ipynb $(FULL)/sweep.ipynb
	$(call execute,experts,-p experiment $(FULL)/classify -p expert_dir "$(EXPERT)" -p out_dir $(FULL)/experts)

# as many sweeps as devices, one on each; every run of the classifier is made by the first that is free
define share
	@mkdir -p $(@D)
	@IFS=, read -ra seen <<< "$${CUDA_VISIBLE_DEVICES:-$$(seq -s, 0 $$(($(DEVICES) - 1)))}"; \
	  printf '%s\n' "$${seen[@]:0:$(DEVICES)}" | xargs -P $(DEVICES) -I{} env CUDA_VISIBLE_DEVICES={} \
	  $(BIN)/papermill nbs/sweep.ipynb $(@D)/.part-sweep-{}.ipynb $(SWEEP) --no-progress-bar
	@rm -f $(@D)/.part-sweep-*.ipynb
endef

$(TABLES)/README.md: $(patsubst %,$(FULL)/%.ipynb,evaluate align compare $(if $(EXPERT),experts))
	@mkdir -p $(@D)
	@cp $(FULL)/train/log.csv $(FULL)/evaluate/*.csv $(@D)/
	@cp $(KEPT:%=$(FULL)/compare/%) $(FULL)/compare/*_aligned.md $(@D)/
	@$(if $(EXPERT),cp $(FULL)/experts/experts.* $(@D)/)
	@$(BIN)/python -m cxr_stn.study.full_run page $(@D) $(BUDGET)
