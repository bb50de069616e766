# The commands of the README. Each builds the environment that it needs.
PYTHON ?= python3
ENVIRONMENT = .venv/keras-deep-residual

demo: $(ENVIRONMENT)
	.venv/bin/python train/fit.py --dataset shapes --steps 300 --name demo

test: $(ENVIRONMENT)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -n 2 --dist worksteal

walkthrough: $(ENVIRONMENT)
	.venv/bin/pip install --quiet --editable ".[docs]"
	.venv/bin/jupytext --to ipynb docs/walkthrough.py
	.venv/bin/jupyter nbconvert --execute --inplace docs/walkthrough.ipynb
	.venv/bin/jupyter nbconvert --to html docs/walkthrough.ipynb

$(ENVIRONMENT): setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable ".[test]"
	touch $@

.PHONY: demo test walkthrough
