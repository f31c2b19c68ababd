# Every target sets itself up in .venv; a second run costs no second set-up.
PYTHON ?= python3
# Colab has Python 3.13; any other shows nearly as much
COLAB_PYTHON ?= $(firstword $(foreach name,python3.13 $(PYTHON),$(shell $(name) -c 'import sys; print(sys.executable)' 2>/dev/null)))
VENV   ?= .venv
COLAB_VENV  ?= .venv-colab
NBDEV3_VENV ?= .venv-nbdev3
BIN    := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
ARGS   ?=
SHELL  := bash
NOTEBOOKS := $(sort $(wildcard nbs/*.ipynb))

.PHONY: help serve lab train mlflow-ui test colab nbdev3 notebooks readme benchmarks clean
.DEFAULT_GOAL := help

help:  ## Show this
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.package: settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and f"Python 3.11.4 or newer is needed; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(BIN)/python -m pip install -q -e '.[dev,export]'
	@touch $@

$(VENV)/.mlops: $(VENV)/.package
	$(BIN)/python -m pip install -q -e '.[mlops]'
	@touch $@

$(VENV)/.notebooks: $(VENV)/.package
	@$(BIN)/python -m pip install -q -e '.[notebooks]'
	@touch $@

serve: $(VENV)/.package  ## Serve the bundled model at http://127.0.0.1:8000 (ARGS="--port 8080" and other flags)
	$(BIN)/cifar-nb serve $(ARGS)

lab: $(VENV)/.notebooks  ## Open the notebooks in JupyterLab (CIFAR_NB_SCALE=quick make lab: on less of the data)
	$(BIN)/jupyter lab $(ARGS) nbs

train: $(VENV)/.package  ## Train on the real data, downloading it where it is missing (ARGS="--recipe speed94")
	$(BIN)/cifar-nb train $(ARGS)

mlflow-ui: $(VENV)/.mlops  ## Show tracked trainings (train --track) at http://127.0.0.1:5000 (ARGS="--port 5001")
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --workers 1 $(ARGS) --backend-store-uri "$$($(BIN)/python -c 'from cifar_nb.core import Settings; from cifar_nb.registry import open_store; print(open_store(Settings.read()).address)')"

test: $(VENV)/.dev  ## Run every test, offline, on synthetic images; print where the time goes
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/run_all.py

colab:  ## Install into Colab's versions of all libraries (.github/colab.txt), replacing none, and run every notebook there
	$(COLAB_PYTHON) -m venv --clear $(COLAB_VENV)
	$(COLAB_VENV)/bin/python -m pip install -q -r .github/colab.txt
	$(COLAB_VENV)/bin/python tests/colab.py

nbdev3:  ## Export and test the notebooks with nbdev 3, which must write the same package as nbdev 2
	$(PYTHON) -m venv --clear $(NBDEV3_VENV)
	$(NBDEV3_VENV)/bin/python -m pip install -q -e '.[colab,export,trust,nbdev3]'
	PATH="$(abspath $(NBDEV3_VENV))/bin:$$PATH" $(NBDEV3_VENV)/bin/python tests/nbdev3.py

notebooks: $(VENV)/.dev  ## Run every notebook at full scale on the real data, keeping the outputs
	for nb in $(NOTEBOOKS); do echo $$nb; CIFAR_NB_SCALE=full TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 --log-level WARN $$nb || exit 1; done
	PATH="$(abspath $(BIN)):$$PATH" nbdev_clean --fname nbs
	$(MAKE) readme

readme: $(VENV)/.dev  ## Point every badge at the address in settings.ini, and render README.md and the glossary from the notebooks
	$(BIN)/python .github/readme.py

benchmarks: $(VENV)/.dev  ## Measure loading, start and speed for hours, on a quiet machine; CONTRIBUTING.md has the other benchmarks
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/waiting.py
	$(BIN)/python benchmarks/ladder.py
	$(BIN)/python benchmarks/speed.py plain
	$(BIN)/python benchmarks/speed.py run speed94
	$(BIN)/python benchmarks/speed.py run speed_cifar100 --runs 3

clean:  ## Remove the environment and what builds leave behind
	rm -rf $(VENV) $(COLAB_VENV) $(NBDEV3_VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
