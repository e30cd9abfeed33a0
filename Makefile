# make .venv | demo | test | lint | certs | bench
PYTHON ?= python3
BIN := .venv/bin

.PHONY: .venv demo test lint certs bench

.venv: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv
	$(BIN)/python train/main.py --config configs/quickstart.toml --run_dir runs/quickstart --overwrite true

.venv/installed-remote: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[remote]'
	touch $@

# HOSTS: names and addresses by which the client finds the server, as in make certs HOSTS="gpu.example.org 10.0.0.5"
HOSTS ?= localhost 127.0.0.1 ::1
# CLIENTS: more clients, each with a folder of its own, as in make certs CLIENTS="ada grace"
CLIENTS ?=

certs: .venv/installed-remote
	$(BIN)/python -m nscjax.remote.certs certs --hosts $(HOSTS) --more $(CLIENTS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

bench: .venv/installed-bench
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/factorise.py
