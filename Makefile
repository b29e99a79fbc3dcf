# Each chore is one word. Everything is installed into .venv; nothing else on the machine is touched.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARTIFACT ?= artifacts/fields-smollm2
CONFIG ?= training/configs/fields-smollm2.yaml
PORT ?= 8000
WORKERS ?= 2
MINUTES ?= 20
# Where pip has a folder of wheels (of torch for CPUs, for this Python), images are tried with these.
IMAGES ?= $(if $(PIP_FIND_LINKS),--build-arg CUDA=cpu --build-context wheels=$(PIP_FIND_LINKS))
TRY_IMAGES = $(if $(PIP_FIND_LINKS),PYTHON_PREFIX=$$($(PYTHON) -c 'import sys; print(sys.base_prefix)')) docker/try_images.sh $(IMAGES)

.PHONY: help setup serving peers count demo serve train test test-exhaustive test-fast docs notebook bench gpu soak images wheel check format clean

help:
	@echo "make setup                    install everything into .venv; the others install what they need alone"
	@echo "make demo                     serve the default artifact and ask it three questions; PORT=8123 if $(PORT) is taken"
	@echo "make test [ARGS=...]          run the tests, all but the exhaustive ones; ARGS go to pytest"
	@echo "make test-exhaustive          these too, all that is drawn, and the images: before a release"
	@echo "make test-fast                without a model, a process, what computes for seconds, and benchmarks/"
	@echo "make docs                     build the documentation site into site/, with every link checked"
	@echo "make notebook                 execute docs/five-lines.ipynb and write its page"
	@echo "make bench [QUICK=1]          how fast, beside other packages: benchmarks/RESULTS.md (QUICK: some minutes, publishes nothing)"
	@echo "make gpu [ARGS=...]           all that needs a GPU, in at most 30 minutes, into one file to send back"
	@echo "make soak [MINUTES=20]        every kind of client at once: is memory flat, was an answer wrong? benchmarks/load/"
	@echo "make train [CONFIG=...]       heads first, then fine-tune if asked (default: $(CONFIG));"
	@echo "                              SET='optimizer.steps=5 name=quick' overrides fields"
	@echo "make serve [ARTIFACT=...]     serve an artifact on port $(PORT), to this machine alone and without API keys"
	@echo "make images [IMAGES=...]      build both images with buildah, without a daemon, and try them: docker/README.md"
	@echo "make wheel                    build the distributions into dist/, as an index would have them"
	@echo "make check                    format, lint, types, import rules, English, known vulnerabilities"
	@echo "make count                    lines and words by room, beside the most that there may be"
	@echo "make format                   format, and fix what ruff can fix"
	@echo "make clean                    remove .venv and run results"

setup: $(VENV)/.installed

serving: $(VENV)/.serving

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.serving

# What serving needs alone, a quarter of the packages.
$(VENV)/.serving: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[service]'
	@touch $@

peers: $(VENV)/.peers

$(VENV)/.peers: $(VENV)/.installed
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,peers,study]'
	@touch $@

demo: serving
	@$(BIN)/python -m service.demo --artifact $(ARTIFACT) --port $(PORT)

serve: serving
	@exec $(BIN)/python -m service --artifact $(ARTIFACT) --host 127.0.0.1 --port $(PORT) --auth off

train: setup
	@exec $(BIN)/python -m training run --config $(CONFIG) $(foreach item,$(SET),--set '$(item)')

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-exhaustive: setup
	LAPLORA_EXHAUSTIVE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(TRY_IMAGES) || [ $$? = 77 ]

test-fast: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not (real or process or gpu or slow)" --ignore tests/benchmarks $(ARGS)

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html, or serve it with its search: $(BIN)/python -m http.server --directory site"

notebook: setup
	$(BIN)/python .ci/notebook.py

wheel: setup
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist --quiet .
	@$(BIN)/python -m build --outdir dist --quiet --wheel client
	@ls dist

bench: setup peers
	$(BIN)/python -m benchmarks.speed $(if $(QUICK),--quick)

gpu: setup
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

soak: setup
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

images:
	$(TRY_IMAGES)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/english.py
	$(BIN)/python .ci/audit.py

count:
	@$(PYTHON) .ci/count.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist site *.egg-info
