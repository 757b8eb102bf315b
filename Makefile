# Set-up, tests and a first run. `make` lists the targets.
# Everything is installed in .venv; a path with spaces works.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := runs/demo-inputs
# Most tests wait for a process that loads torch. More of these at once would want much memory.
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

ENGINE ?= podman
REGISTRY ?=
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' steps/__init__.py)
BASE ?=
BUILD_FLAGS ?=
# buildah alone would put the libraries and the steps into one layer.
export BUILDAH_LAYERS ?= true
IMAGES := $(patsubst images/%/Containerfile,image-%,$(wildcard images/*/Containerfile))

.DEFAULT_GOAL := help
.PHONY: help demo test check format manifests bench gpu-check images $(IMAGES) constraints clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(VENV)/local ## Fine-tune a tiny model on this machine and write runs/demo/report.html
	@$(PY) examples/dictionary/make.py $(DEMO)
	@rm -rf runs/demo
	@$(PY) -m workflows.cli run --run-name demo --params examples/dictionary/params.yaml \
		--data-uri "$(CURDIR)/$(DEMO)/chats.jsonl" --model "$(CURDIR)/$(DEMO)/model" \
		--tasks "[\"$(CURDIR)/$(DEMO)/dictionary.yaml\"]"

test: $(VENV)/dev ## Run the tests
	$(PYTEST)

check: $(VENV)/dev ## Format, lint, types, tests: what CI runs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PYTEST)

format: $(VENV)/dev ## Format the code, and renew what is generated from it
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(PY) -m workflows.readme

manifests: $(VENV)/dev ## Render manifests/ anew from sft.yaml
	$(PY) -m workflows.cli render

bench: $(VENV)/dev ## Measure against named baselines, as ratios in one run
	$(PY) -m benchmarks

# With PYTHON= nothing is installed: that interpreter, and what PYTHONPATH names, serve as they are.
GPU_PY := $(if $(filter command environment,$(firstword $(origin PYTHON))),$(PYTHON),$(PY))
gpu-check: $(if $(filter $(PY),$(GPU_PY)),$(VENV)/dev) ## Check training on a CUDA GPU; PYTHON= names an interpreter with torch
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" "$(GPU_PY)" -m benchmarks.gpu

images: $(IMAGES) ## Build the steps' images; images/README.md says with what settings

# An argument without a value is the environment's variable, where there is one.
$(IMAGES): image-%:
	$(ENGINE) build --file images/$*/Containerfile --tag $(if $(REGISTRY),$(REGISTRY)/)sft-$*:$(TAG) \
		$(if $(BASE),--build-arg BASE=$(BASE)) --build-arg PIP_INDEX_URL --build-arg PIP_EXTRA_INDEX_URL \
		--build-arg VERSION=$(TAG) --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null) \
		$(BUILD_FLAGS) .

constraints: $(VENV)/dev ## Renew constraints.txt from what is installed
	@{ sed -n '/^#/p' constraints.txt; \
	   $(PY) -m pip freeze --exclude-editable | sed -E 's/ @ .*-([0-9.]+)(%2B|\+)[^-]*-.*/==\1/; s/\+[a-z0-9.]+$$//'; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## Remove the environment, caches and runs
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache

$(VENV)/local: pyproject.toml constraints.txt
	@$(call install,local)
$(VENV)/dev: pyproject.toml constraints.txt
	@$(call install,dev)

define install
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; make PYTHON=python3.12 names another")'
test -x $(PY) || $(PYTHON) -m venv $(VENV)
echo "installing into $(VENV): a few minutes the first time"
$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(1)]'
touch $@
endef
