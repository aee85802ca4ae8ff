# Needs Python 3.11+ and make; everything else is installed into .venv.
SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell \
  command -v $(name) >/dev/null && $(name) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo yes),$(name))))
BIN := .venv/bin
# What `make test REQUIRE=slurm,podman` names must run; a skip is a failure then.
REQUIRE ?=
APT_PACKAGES := slurm-wlm slurm-wlm-jwt-plugin munge podman runc debootstrap busybox g++

.PHONY: venv demo test test-unit test-real coverage lint test-deps bench-cli docs clean

demo: venv
	$(BIN)/launch local examples/quickstart/base.yaml
	$(BIN)/launch local examples/quickstart/job.yaml

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv found; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3 (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt -e '.[train,dev]'
	@echo "Building DeepSpeed's CPU op (about a minute, once) ..."
	$(BIN)/python -m trainer.parallel.build_ops
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One pass over everything: a linter that complains does not hide what the tests say. The tests run in lanes side by
# side, because most of them wait for processes; what the later lanes printed comes after the first.
LANES := clusters processes trainer_1 trainer_2
clusters := tests/contract tests/e2e_k8s tests/e2e_slurm
processes := tests/process tests/fake_k8s tests/unit
# so chosen that both lanes of the trainer take about equally long
TRAINER_2 := chat checkpoint_files compose export families internlm2 lora_targets merge new_model quickstart real \
  remote_code results resume_zero sample vision xcomposer2
trainer_2 := $(foreach name,$(TRAINER_2),$(wildcard tests/trainer/test_$(name)*.py))
trainer_1 := $(filter-out $(trainer_2),$(wildcard tests/trainer/test_*.py)) tests/gpu
PYTEST = $(BIN)/python -m pytest --durations=12 --require=$(REQUIRE) $($(1))

test: export OMP_WAIT_POLICY := passive
test: venv
	@failed=; for step in "ruff check ." mypy lint-imports; do \
	  echo "== $$step"; $(BIN)/$$step || failed="$$failed\n  $$step"; done; \
	$(foreach lane,$(wordlist 2,9,$(LANES)),$(call PYTEST,$(lane)) >.tests-$(lane).log 2>&1 & $(lane)=$$!; )\
	echo "== pytest: clusters"; $(call PYTEST,clusters) || failed="$$failed\n  pytest: clusters"; \
	$(foreach lane,$(wordlist 2,9,$(LANES)),wait $$$(lane) || failed="$$failed\n  pytest: $(lane)"; \
	echo "== pytest: $(lane)"; cat .tests-$(lane).log; )\
	if [ -n "$$failed" ]; then echo -e "failed:$$failed" >&2; exit 1; fi

# In one process, on no server and no clock: while one works on the launcher or the data pipeline.
test-unit: venv
	$(BIN)/python -m pytest tests/unit

# Apart from `make test`: a real model, and minutes of training on it.
test-real: export OMP_WAIT_POLICY := passive
test-real: venv
	$(BIN)/python -m pytest --durations=3 --require=$(REQUIRE) tests/real

# Apart from `make test`: tracing makes it slower.
coverage: venv
	$(BIN)/coverage run -m pytest $(trainer_1) $(trainer_2) $(processes)
	$(BIN)/coverage report --skip-covered

test-deps:
	@if ! command -v apt-get >/dev/null; then echo "error: test-deps needs apt-get (Debian, Ubuntu); install by hand: $(APT_PACKAGES)" >&2; exit 1; fi
	@if [ "$$(id -u)" != 0 ]; then echo "error: test-deps needs root: sudo make test-deps" >&2; exit 1; fi
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $(APT_PACKAGES)

bench-cli: venv
	$(BIN)/python bench/cli.py

docs: venv
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
