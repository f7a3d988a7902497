# The commands for daily work. `make run` and `make test` install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-fast fuzz chaos proofs-storage proofs-cluster audit manifests lint types chromium clean

run: $(STAMP)
	$(BIN)/ladd-pipeline run --preset shapes --until distill

test: $(STAMP) chromium
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=
	$(BIN)/coverage report --skip-covered --fail-under=95

test-fast: $(STAMP)
	$(BIN)/python -m pytest tests -m "not slow" --numprocesses 2 --dist loadfile

# Long proofs (docs/reliability.md): each goes on where it was stopped; remove .proofs to begin again.
EXAMPLES ?= 10000
KILLS ?= 100

# $(call each_once,name,files,environment): the test files that have not passed yet under this name, at this commit.
COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null || echo none)
define each_once
	@mkdir -p .proofs
	@for file in $(filter-out %/__init__.py %/conftest.py,$(wildcard $(2))); do \
	  stamp=.proofs/$(1)-$(COMMIT)-$$(basename $$file .py); \
	  if [ -e $$stamp ]; then echo "$$file has passed before"; continue; fi; \
	  $(3) $(BIN)/python -m pytest $$file --timeout 0 -rA || exit 1; \
	  touch $$stamp; done
endef

fuzz: $(STAMP)
	$(call each_once,fuzz-$(EXAMPLES),tests/fuzz/test_*.py,FUZZ_EXAMPLES=$(EXAMPLES))

chaos: $(STAMP)
	$(BIN)/python -m tests.chaos --kills $(KILLS) --folder .proofs/chaos

# Real Ray clusters: nodes and heads are lost, a rendered entrypoint runs as in its pod, nodes come from nothing; and the
# image's install steps in a clean environment. Needs root, for namespaces, and an hour.
proofs-cluster: $(STAMP)
	$(call each_once,cluster,tests/ray/proofs/*.py)

# infra/k8s/base is rendered, never edited: again after a change of the presets or of what is rendered.
manifests: $(STAMP)
	$(BIN)/ladd-pipeline k8s render -c infra/k8s/pipeline.yaml --until distill --eval --out infra/k8s/base

# The whole chain on a real S3 server, and everything else that a store must keep.
proofs-storage: $(STAMP)
	$(call each_once,storage,tests/storage/*.py)

# Known vulnerabilities of the pinned packages, as PyPI lists them, and an SBOM of what is installed here. Fails where PyPI
# does not know a package. It has a separate environment, so that the auditing tools are not audited themselves.
AUDIT := .venv-audit
audit: $(STAMP)
	test -x $(AUDIT)/bin/pip-audit || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet pip-audit==2.10.1 cyclonedx-bom==7.5.0
	$(BIN)/pip check
	$(AUDIT)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file sbom.json
	$(AUDIT)/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# The tests of the report and the voting page drive a real browser.
chromium:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  (apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver) >/dev/null || \
	  echo "tests/browser need chromium and chromedriver: install them with your system's package manager"

# Install torch first and separately: with its version pinned, pip picks the build meant for this machine.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$$(grep ^torch== constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) ladd-store samples
