# The experiments on real radiographs that results/PROTOCOL.md announces; part of ../Makefile, whose variables it
# uses. Every run is restartable, with one thread: `make -j2 real` uses two cores and changes no digit.
REAL_IMAGES = -p data_dir "$(CXR_STN_DATA)/nih14-sample:$(CXR_STN_DATA)/nih14-sample-2"
REAL       := cross_validation cross_validation_phantom
.PHONY: real
.PRECIOUS: runs/real/aligner-%.ipynb

# an aligner for each fold, for each view, or from phantoms alone
runs/real/aligner-%.ipynb: nbs/train.ipynb $(SETS)/release.yaml $(SETS)/real/aligner.yaml | $(READY)
	$(NEEDS_DATA)
	$(call execute,train,-f $(SETS)/release.yaml -f $(SETS)/real/aligner.yaml -p out_dir runs/real/aligner-$* \
	  $(if $(filter phantom,$*),-f $(SETS)/real/aligner_phantom.yaml,$(REAL_IMAGES) -p n_folds 5 -p fold $*))
