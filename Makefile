# The two commands of the README. Both build the environment that they need.
PYTHON ?= python3
ENVIRONMENT = .venv/keras-deep-residual

demo: $(ENVIRONMENT)
	.venv/bin/python train/fit.py --dataset shapes --steps 300 --name demo

test: $(ENVIRONMENT)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -n 2 --dist worksteal

$(ENVIRONMENT): setup.cfg
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable ".[test]"
	touch $@

.PHONY: demo test
