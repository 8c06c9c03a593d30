# make demo    install into .venv, draw with trained weights, then train, evaluate and draw
# make demo-captions the same for captions, on generated scenes
# make test    own environment, install with test extras, the whole test suite
# make check   lint, types, import contracts, what is built and installed (after make test's install)
# make docs    the site, in build/site
# make environment  own environment, install with the extras of all of these
# make tutorials runs the tutorials of the site again and stores their outputs
# make bench   speed, as ratios
# make profile where an update's time goes

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Updates of the demo, on canvases of 60 x 60 pixels: about two minutes on two cores.
STEPS  := 3000
NOW    := $(shell date +%Y%m%d-%H%M%S)
RUN    := runs/demo-$(NOW)
SCENES := runs/demo-captions-$(NOW)

.PHONY: demo demo-captions test check lint types imports dist docs environment tutorials bench profile clean

demo: $(VENV)/.installed-cli
	@mkdir -p $(dir $(RUN))
	$(BIN)/python cli.py glimpses pretrained/digits --count 16 --out $(RUN)-pretrained.png
	@echo "where trained weights look: $(RUN)-pretrained.png (and .gif); now training from scratch, on smaller images"
	$(BIN)/python cli.py train experiments/digits.toml --set data.canvas=60 --set training.steps=$(STEPS) --out $(RUN)
	$(BIN)/python cli.py glimpses $(RUN) --count 16
	@echo "test digits, 20 glimpse sequences each:"
	@$(BIN)/python cli.py evaluate $(RUN) --samples 20 --split test
	@echo "picture: $(RUN)/glimpses.png (and .gif)"

# A worker for each core, but no more than fit into memory.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

demo-captions: $(VENV)/.installed-captions
	$(BIN)/python cli.py train experiments/scenes.toml --out $(SCENES)
	@echo "held-out scenes, ten sampled paths of looks:"
	@$(BIN)/python cli.py evaluate $(SCENES) --beam 3 --paths 10
	$(BIN)/python cli.py caption $(SCENES) 0 1 2 3 --paths 10
	@echo "pictures: $(SCENES)/captions"

check: lint types imports dist

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

imports: $(VENV)/.installed-test
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python scripts/import_graph.py

dist: $(VENV)/.installed-test
	$(BIN)/python scripts/check_distributions.py

docs: $(VENV)/.installed-docs
	rm -rf build/site
	$(BIN)/python -m sphinx -b html --fresh-env --fail-on-warning --keep-going --quiet docs build/site
	$(BIN)/python scripts/check_site.py build/site

tutorials: $(VENV)/.installed-test
	$(BIN)/python scripts/run_tutorials.py

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/steps.py

profile: $(VENV)/.installed-test
	$(BIN)/python benchmarks/breakdown.py

environment: $(VENV)/.installed-test $(VENV)/.installed-docs

# Installed once per environment, and again only when the requirements change.
$(VENV)/.installed-cli: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[cli]'
	@touch $@

$(VENV)/.installed-captions: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[cli,captions]'
	@touch $@ $(VENV)/.installed-cli

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@ $(VENV)/.installed-cli $(VENV)/.installed-captions

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@ $(VENV)/.installed-cli $(VENV)/.installed-captions

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
