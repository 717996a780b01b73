# `make help` lists the targets. Variables: PROFILE, ALL, CPU, SAMPLES, DATA_ROOT, RESULTS_ROOT, FIGURES_ROOT, CACHE_ROOT, PYTHON, PY, JOBS;
# `segment`, `bench`, `export` and `score` have their own.

PROFILE ?= demo
PYTHON ?= python3# the interpreter that .venv is built from
PY ?= .venv/bin/python# another environment (conda, Colab): make PY=python paper
JOBS ?= 2# processes that `make test` runs side by side
export PROFILE
export PYTHONUTF8 = 1# files are UTF-8 in any locale

# Folders given from outside count from here, also for a notebook, which runs in notebooks/.
absolute = $(if $(filter-out /% ~%,$(firstword $($1))),$(eval override export $1 := $(CURDIR)/$($1)))
$(foreach name,SAMPLES DATA_ROOT RESULTS_ROOT FIGURES_ROOT CACHE_ROOT,$(call absolute,$(name)))

REQUIREMENTS := requirements.txt requirements-notebooks.txt requirements-checks.txt
INSTALLED := $(if $(filter .venv/bin/python,$(PY)),.venv/.installed)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
SCRATCH := $(CURDIR)/build/smoke

.DEFAULT_GOAL := help
.PHONY: help paper figures report site badges samples segment bench test test-lib test-notebooks test-browser notebooks stage-pairs lint clean $(NOTEBOOKS:%=smoke/%)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "PROFILE=smoke|demo|sample|full selects data and size (now: $(PROFILE)); PY=python uses the active environment, not .venv."

paper: $(INSTALLED) ## train what is out of date, rebuild every table and figure (ALL=1: every run, ablations and seeds too)
	@echo "paper: profile $(PROFILE)$(if $(filter 1,$(ALL)), with every run)"
	$(PY) paper.py paper --profile $(PROFILE) $(if $(filter 1,$(ALL)),--all)

figures: $(INSTALLED) ## rebuild tables and figures from the stored scores, without training
	@echo "figures: profile $(PROFILE), from the stored scores"
	$(PY) paper.py figures --profile $(PROFILE)

report: figures ## print every table and figure of the profile as results/<profile>/report.pdf
	$(PY) -m publish.report --profile $(PROFILE)

site: report ## browse the executed notebooks, tables and figures: build/site/index.html
	$(PY) -m publish.site --profile $(PROFILE)

badges: notebooks ## write each notebook's Colab badge and first cell, for the address in pyproject.toml
	$(PY) -m publish.badges
	$(PY) -m jupytext --quiet --sync notebooks/*.py

samples: $(INSTALLED) ## download the four public sample scans into $SAMPLES, else data/samples
	$(PY) -m lib.samples

# Only what was given goes on, so that segment_scan's own defaults hold; PROFILE is in the environment.
SEGMENT_OPTIONS = $(foreach name,PROMPTS CHECKPOINT MODALITY SERIES,$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) "$($(name))")) \
	$(if $(filter 1,$(PROBABILITIES)),--probabilities) $(if $(filter 1,$(OVERWRITE)),--overwrite)
segment: $(INSTALLED) ## a scan of your own: SCAN=file-or-folder OUT=folder, and PROMPTS="liver,spleen" CHECKPOINT=adapter OVERWRITE=1
	@$(if $(and $(SCAN),$(OUT)),,echo 'segment: name a scan and a folder: make segment SCAN=scan.nii.gz OUT=found PROMPTS="liver,spleen"' >&2; exit 2)
	@$(PY) segment.py $(SEGMENT_OPTIONS) "$(SCAN)" "$(OUT)"

test: $(INSTALLED) ## unit tests, then every notebook in the smoke profile (JOBS=2 at a time)
	@$(MAKE) --no-print-directory test-lib
	@$(MAKE) --no-print-directory test-notebooks

test-lib:
	@echo "test: lib"
	$(PY) -m pytest -rs -n $(JOBS) tests

test-notebooks:
	@$(if $(NOTEBOOKS),,echo "test: there is no notebooks/*.ipynb to run" >&2; exit 1)
	@echo "test: $(words $(NOTEBOOKS)) notebooks, profile smoke, each by itself in $(SCRATCH)"
	@rm -rf "$(SCRATCH)"
	@$(MAKE) --no-print-directory --keep-going $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) -j $(JOBS) $(NOTEBOOKS:%=smoke/%)

# Each notebook writes into a folder of its own, so that none leans on another and committed results stay as they are.
$(NOTEBOOKS:%=smoke/%): smoke/%:
	@echo "test: $*"
	@PROFILE=smoke RESULTS_ROOT="$(SCRATCH)/$(basename $(*F))/results" FIGURES_ROOT="$(SCRATCH)/$(basename $(*F))/figures" \
	CACHE_ROOT="$(SCRATCH)/$(basename $(*F))/cache" OMP_NUM_THREADS=1 \
	$(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=600 --nbval-kernel-startup-timeout=120 $*

bench: $(INSTALLED) ## measure speed and memory at full size against the released way (about 25 minutes; BENCH="--rounds 5")
	$(PY) -m benchmark $(BENCH)

notebooks: $(INSTALLED) ## bring each notebook's .py and .ipynb in step (the younger file wins)
	$(PY) -m jupytext --quiet --sync notebooks/*.py

lint: $(INSTALLED) ## ruff check and format, mypy on lib, notebook pairs and badges in step; changes nothing
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest tests/test_setup.py tests/test_publish_badges.py -k "pairs or current_badge"

test-browser: $(INSTALLED) ## JupyterLab and the pages of `make site` in a real browser (needs a chromium; CHROMIUM=path, SITE=folder)
	@$(PY) -c "import playwright" 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check playwright -c constraints.txt
	PYTHONPATH="$(CURDIR)" $(PY) -m pytest -rs tests_browser

stage-pairs: $(INSTALLED)
	@$(PY) -m jupytext --sync --pre-commit-mode $(FILES)

clean: ## delete build products and caches; results, figures, data sets and .venv stay
	@for path in build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache data/cache results/smoke figures/smoke; do \
		if [ -L "$$path" ]; then echo "leaving $$path, which is a link"; \
		elif [ -e "$$path" ]; then echo "deleting $$path"; rm -rf "$$path"; fi; \
	done
	@find lib proof publish benchmark tests notebooks -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -print -exec rm -rf {} + | sed 's/^/deleting /'

.venv/.installed: $(REQUIREMENTS) constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "Python 3.11 or newer is needed, and $(PYTHON) is not: name one by make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing the tested versions into .venv (some minutes the first time)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check $(REQUIREMENTS:%=-r %) -c constraints.txt
	@.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.PHONY: data-check splits export score

data-check: $(INSTALLED) ## verify every case of the data sets below DATA_ROOT; one table, one verdict
	$(PY) -m lib.datasets.check

splits: $(INSTALLED) ## write which scans train, validate and test, with their hashes (results/<profile>/splits.csv)
	$(PY) -m lib.datasets.splits --profile $(PROFILE)

export: $(INSTALLED) ## a split as nnU-Net raw: DATASET=FLARE22 PART=training|validation|test|all OUT=.../Dataset022_FLARE22
	$(PY) -m lib.datasets.export --profile $(PROFILE) "$(DATASET)" "$(PART)" "$(OUT)"

score: $(INSTALLED) ## label maps from elsewhere into the tables: NAME=nnunet DATASET=BTCV LABELS=folder [IDS=BTCV]
	$(PY) -m lib.foreign --profile $(PROFILE) "$(NAME)" "$(DATASET)" "$(LABELS)" $(if $(IDS),--ids "$(IDS)")

.PHONY: full-proof

full-proof: $(INSTALLED) ## run the full profile's parts at full size on phantoms and random weights (20 idle minutes, 12 GB of memory)
	$(PY) -m proof
