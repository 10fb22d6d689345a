# Needs only Python 3.11 (or newer) and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN = .venv/bin/python

.PHONY: demo test clean

demo: .venv/installed
	$(RUN) -m experiments.demo

test: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -n 2

.venv/installed: requirements.txt
	"$(PYTHON)" -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	find saved -mindepth 1 -maxdepth 1 ! -name ready ! -name .gitkeep -exec rm -rf {} +
	rm -rf .venv embed/* results dataset/*/
