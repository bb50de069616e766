# The commands of the README. Each creates the environment that it needs.
PYTHON ?= python3
ENVIRONMENT = .venv/keras-deep-residual

demo: $(ENVIRONMENT)
	.venv/bin/python train/fit.py --dataset shapes --steps 300 --name demo

test: $(ENVIRONMENT)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -n 2 --dist worksteal

# `make pages` builds the site without running the walkthrough, in half a minute.
site: walkthrough pages

pages: $(ENVIRONMENT)
	.venv/bin/pip install --quiet --editable ".[docs]"
	.venv/bin/sphinx-build -q -W --keep-going -d docs/made/trees docs site
	@echo "site/index.html is the first page"

walkthrough: $(ENVIRONMENT)
	.venv/bin/pip install --quiet --editable ".[docs]"
	.venv/bin/python docs/site/walkthrough.py
	.venv/bin/jupyter nbconvert --to html docs/walkthrough.ipynb

$(ENVIRONMENT): setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable ".[test]"
	touch $@

# Everything for a release except the upload.
release: test site
	rm -rf dist
	.ci/wheel dist
	@echo "dist/ is for a package index, site/ for a static host"

.PHONY: demo test site pages walkthrough release
