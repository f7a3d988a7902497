# The commands for daily work. `make run` and `make test` install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-fast fuzz proofs-storage manifests lint types chromium clean

run: $(STAMP)
	$(BIN)/ladd-pipeline run --preset shapes --until distill

test: $(STAMP) chromium
	$(BIN)/python -m pytest tests --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=
	$(BIN)/coverage report --skip-covered --fail-under=95

test-fast: $(STAMP)
	$(BIN)/python -m pytest tests -m "not slow" --numprocesses 2 --dist loadfile

fuzz: $(STAMP)
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/fuzz --timeout 0

# infra/k8s/base is rendered, never edited: again after a change of the presets or of what is rendered.
manifests: $(STAMP)
	$(BIN)/ladd-pipeline k8s render -c infra/k8s/pipeline.yaml --until distill --eval --out infra/k8s/base

# The whole chain on a real S3 server, and everything else that a store must keep.
proofs-storage: $(STAMP)
	$(BIN)/python -m pytest tests/storage tests/storage/whole_chain.py --timeout 0

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
