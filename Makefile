# `make help` lists the targets. Variables: PROFILE, ALL, DATA_ROOT, RESULTS_ROOT, FIGURES_ROOT, CACHE_ROOT, SAMPLES, PYTHON, PY, JOBS;
# `segment`, `export`, `score` and `bench` have their own.

PROFILE ?= demo
PYTHON ?= python3# the interpreter that .venv is built from
PY ?= .venv/bin/python# another environment (conda, Colab): make PY=python paper
JOBS ?= 2# processes that `make test` runs side by side
export PROFILE
export PYTHONPATH := $(CURDIR)

# Folders given from outside count from here, also for a notebook, which runs in notebooks/.
absolute = $(if $(filter-out /% ~%,$(firstword $(value $1))),$(CURDIR)/)
$(foreach name,SAMPLES DATA_ROOT RESULTS_ROOT FIGURES_ROOT CACHE_ROOT,$(if $(value $(name)),$(eval override export $(name) := $$(call absolute,$(name))$$(value $(name)))))

$(if $(word 2,$(RESULTS_ROOT)),$(error RESULTS_ROOT ("$(RESULTS_ROOT)") holds a blank, where make ends a file's name: name another folder))

REQUIREMENTS := requirements.txt requirements-notebooks.txt requirements-checks.txt
INSTALLED := $(if $(filter .venv/bin/python,$(PY)),.venv/.installed)
BOOKS := $(sort $(basename $(notdir $(wildcard notebooks/*.py))))
RESULTS := $(or $(RESULTS_ROOT),results)/$(PROFILE)
EXECUTED := $(RESULTS)/notebooks
LANES := $(if $(filter full proof,$(PROFILE)),1,2)# notebooks side by side: two where models are small
SCRATCH := $(CURDIR)/build/smoke

.DEFAULT_GOAL := help
.PHONY: help paper plan table2 figures report site badges samples biomedclip segment data data-check export score nnunet bench gpu-proof full-proof notebooks
.PHONY: test test-lib test-notebooks test-browser fuzz lint clean executed $(BOOKS:%=smoke/%) $(BOOKS:%=stored/%)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "PROFILE=smoke|demo|sample|btcv|full selects data and size (now: $(PROFILE)); PY=python uses the active environment, not .venv."

# The paper: papermill runs the notebooks in this order, each as soon as those that it needs are there. make's own time stamps say what
# is out of date; a run that is finished is not trained again, and a killed one goes on from its checkpoint.

paper: $(INSTALLED) $(if $(filter full,$(PROFILE)),plan) ## run every notebook: train what is out of date, write every table and figure (ALL=1: ablations and seeds, too)
	@$(MAKE) --no-print-directory -k -j $(LANES) executed || { \
		echo "paper: not made, for the reasons above; run the same command again to go on:" >&2; \
		for book in $(BOOKS); do [ "$(EXECUTED)/$$book.ipynb" -nt "notebooks/$$book.py" ] || echo "  $$book" >&2; done; exit 1; }
	@echo "paper: notebooks in $(if $(filter demo,$(PROFILE)),notebooks,$(EXECUTED)), tables in $(RESULTS)/tables"

executed: $(BOOKS:%=$(EXECUTED)/%.ipynb)

table2: $(EXECUTED)/05_zero_shot.ipynb ## the shortest way to T-Gated's Table 2, with RUNS="baseline, adapter" without its control
	@echo "table2: $(RESULTS)/tables/tgated_zero_shot.md"

THREE := [0, 1, 2]# by names of their own, for a comma ends an argument of $(if)
FOLDS := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]# three times each of five
SEEDS := $(if $(filter btcv,$(PROFILE)),$(FOLDS),$(THREE))
EVERY := $(if $(filter 1,$(ALL)),-p EVERY_RUN True -p SEEDS "$(SEEDS)")
BOOK = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$($(PY) -c "import os; print(max(1, os.cpu_count() // $(LANES)))")} $(PY) -m tools.notebooks

$(EXECUTED)/%.ipynb: notebooks/%.py $(wildcard lib/*.py)
	@$(BOOK) $< $@ -p PROFILE $(PROFILE) $(EVERY) $(if $(filter demo,$(PROFILE)),--also notebooks/$*.ipynb)

$(EXECUTED)/02_baseline.ipynb $(EXECUTED)/03_temporal_adapter.ipynb $(EXECUTED)/07_med_vlm.ipynb: $(EXECUTED)/00_stand_in.ipynb $(EXECUTED)/01_data_preparation.ipynb
$(EXECUTED)/04_ablations.ipynb $(EXECUTED)/05_zero_shot.ipynb $(EXECUTED)/06_mri.ipynb $(EXECUTED)/09_your_scan.ipynb: $(EXECUTED)/03_temporal_adapter.ipynb
$(EXECUTED)/08_figures.ipynb: $(filter-out $(EXECUTED)/08_figures.ipynb,$(BOOKS:%=$(EXECUTED)/%.ipynb))

figures: $(INSTALLED) ## every table and figure from the stored scores: the same notebooks, without training
	@$(MAKE) --no-print-directory -k -j $(LANES) $(patsubst %,stored/%,$(filter-out 00% 09%,$(BOOKS)))
	@echo "figures: tables in $(RESULTS)/tables, figures in $(or $(FIGURES_ROOT),figures)/$(PROFILE)"

$(BOOKS:%=stored/%): stored/%:
	@$(BOOK) notebooks/$*.py build/stored/$(PROFILE)/$*.ipynb -p PROFILE $(PROFILE) -p TRAIN False

stored/08_figures: $(patsubst %,stored/%,$(filter 02% 03% 04% 05% 06% 07%,$(BOOKS)))

report: figures ## print every table and figure of the profile as results/<profile>/report.pdf
	@$(PY) -m tools.report --profile $(PROFILE)

site: $(INSTALLED) ## browse the executed notebooks, tables and figures: build/site/index.html
	@$(PY) -m sphinx -q -E -d build/doctrees -c tools/site . build/site
	@echo "site: build/site/index.html"

samples: $(INSTALLED) ## download the four public sample scans into $SAMPLES, else data/samples
	@$(PY) -m tools.samples

# A path may hold any character: these go by the environment, where neither make nor a shell expands them.
TEXTS := FOLDER SCAN OUT PROMPTS CHECKPOINT MODALITY SERIES OVERWRITE NAME DATASET PART LABELS IDS RUN IMAGES CONFIGURATIONS TRAINER
$(foreach name,$(TEXTS),$(eval override export $(name) := $$(value $(name))))

biomedclip: $(INSTALLED) ## BiomedCLIP's towers as Med-VLM's encoders: FOLDER=download, see data/full.md
	@$(PY) -m tools.biomedclip

segment: $(INSTALLED) ## a scan of your own: SCAN=file-or-folder OUT=folder, and PROMPTS="liver,spleen" CHECKPOINT=adapter OVERWRITE=1
	@$(PY) -m tools.segment

data: $(INSTALLED) ## fetch the data sets into DATA_ROOT, else data (DATASET=AMOS22: one; ALL_CASES=1: AMOS22 beyond its test scans)
	@$(PY) -m tools.data

data-check: $(INSTALLED) ## verify every case of the data sets below DATA_ROOT; one table, one verdict
	@$(PY) -m tools.data_check

plan: $(INSTALLED) ## what PROFILE=full will train, with hours, memory and disk by steps that are measured here
	@$(PY) -m tools.plan

export: $(INSTALLED) ## a split as nnU-Net raw: DATASET=FLARE22 PART=training+validation+test OUT=.../Dataset022_FLARE22
	@$(PY) -m tools.nnunet export "$$DATASET" "$$PART" "$$OUT"

score: $(INSTALLED) ## label maps into the tables: NAME=nnunet DATASET=BTCV LABELS=folder; or a run on any scans: RUN=adapter IMAGES= LABELS=
	@$(PY) -m $(if $(IMAGES),tools.score,tools.nnunet score "$$NAME" "$$DATASET" "$$LABELS" "$$IDS")

nnunet: $(INSTALLED) ## nnU-Net by its own commands, from plan to scores: DATASET=FLARE22 CONFIGURATIONS="2d 3d_fullres" TRAINER=nnUNetTrainer
	@$(PY) -m tools.nnunet nnunet "$$DATASET" "$$CONFIGURATIONS" "$$TRAINER"

bench: $(INSTALLED) ## measure speed at full size against the released way (BENCH="--rounds 5")
	@$(PY) -m tools.bench $(BENCH)

gpu-proof: $(INSTALLED) ## measure the full profile on a GPU with random weights: 8 minutes, writes results/gpu_proof.json and .md
	@$(PY) -m tools.gpu_proof

full-proof: $(INSTALLED) ## run the full profile's own commands at full size on phantoms and random weights: 20 minutes, 12 GB
	@mkdir -p build
	CPU=1 $(PY) -m pytest -vv -m full --durations=0 --basetemp=build/full-proof tests/test_full_size.py

badges: $(INSTALLED) ## write each notebook's Colab badge and first cell, for the address in pyproject.toml
	@$(PY) -m tools.colab
	@$(MAKE) --no-print-directory notebooks

notebooks: $(INSTALLED) ## bring each notebook's .ipynb in step with its .py, outputs kept where the cells are the same
	@$(PY) -m tools.notebooks in-step $(BOOKS:%=notebooks/%.py)

test: $(INSTALLED) ## unit tests, then every notebook in the smoke profile (JOBS=2 at a time)
	@$(MAKE) --no-print-directory test-lib
	@$(MAKE) --no-print-directory test-notebooks

test-lib:
	@echo "test: lib and tools"
	OMP_NUM_THREADS=1 $(PY) -m pytest -rs -n $(JOBS) tests

test-notebooks:
	@$(if $(BOOKS),,echo "test: there is no notebooks/*.py to run" >&2; exit 1)
	@echo "test: $(words $(BOOKS)) notebooks, profile smoke, each by itself in $(SCRATCH)"
	@rm -rf "$(SCRATCH)"
	@$(MAKE) --no-print-directory -k $(if $(filter output-sync,$(.FEATURES)),-Otarget) -j $(JOBS) $(BOOKS:%=smoke/%)

# Each notebook writes into a folder of its own, so that none leans on another and committed results stay as they are.
$(BOOKS:%=smoke/%): smoke/%:
	@PROFILE=smoke RESULTS_ROOT="$(SCRATCH)/$*/results" FIGURES_ROOT="$(SCRATCH)/$*/figures" CACHE_ROOT="$(SCRATCH)/$*/cache" \
	OMP_NUM_THREADS=1 $(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 \
	--nbval-kernel-startup-timeout=120 notebooks/$*.ipynb

fuzz: $(INSTALLED) ## NIfTI headers and DICOM attributes of every kind, by chance: each is read right, or refused in one sentence
	OMP_NUM_THREADS=1 $(PY) -m pytest -rs -p no:cacheprovider tests_fuzz

test-browser: $(INSTALLED) ## JupyterLab and the pages of `make site` in a real browser (needs a chromium; CHROMIUM=path, SITE=folder)
	@$(PY) -c "import playwright" 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check playwright -c constraints.txt
	$(PY) -m pytest -rs tests_browser

lint: $(INSTALLED) ## ruff and mypy, notebook pairs and badges in step; changes nothing
	$(PY) -m ruff check
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_setup.py tests/test_colab.py -k "pairs or badge"

clean: ## delete build products and caches; results, figures, data sets and .venv stay
	@for path in build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache data/cache results/smoke figures/smoke; do \
		if [ -L "$$path" ]; then echo "leaving $$path, which is a link"; \
		elif [ -e "$$path" ]; then echo "deleting $$path"; rm -rf "$$path"; fi; \
	done
	@find lib tools tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -print -exec rm -rf {} + | sed 's/^/deleting /'

.venv/.installed: $(REQUIREMENTS) constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed, and $(PYTHON) is not: name one by make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing the tested versions into .venv (some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check $(REQUIREMENTS:%=-r %) -c constraints.txt
	@.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@
