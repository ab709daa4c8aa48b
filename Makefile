# `make demo` and `make test` are the main targets. Each creates .venv if it is missing or out of date.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made
DEMO := demo
STORAGE ?= outputs

# DeepSpeed builds a small op at its first use: it is cached in a folder of the project, not in HOME.
export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/$(VENV)/torch_extensions
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: env demo serve study test test-slow check audit constraints docs format clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"found Python {v[0]}.{v[1]}, need 3.11 or 3.12: make PYTHON=/path/to/python3.11")'
	@command -v g++ >/dev/null || { echo "g++ is missing: DeepSpeed builds an op with it (Debian: apt-get install g++)"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@awk '/^uv==/ {on = 1} on {print; if (!/\\$$/) exit}' constraints.txt >$(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -b constraints.txt -e ".[demo,dev]"
	@touch $@

demo: env
	lakd pipeline $(DEMO) --set storage=$(STORAGE)

serve: env
	lakd serve $(DEMO) --set storage=$(STORAGE) serve.port=8000

study: env
	lakd run-grid study --set storage=$(STORAGE)

test: env
	pytest -m "not slow and not gpu"

test-slow: env
	pytest -m "slow and not gpu"

check: env
	ruff check .
	ruff format --check .
	mypy
	pytest -q tests/test_architecture.py tests/test_prose.py

NOT_AUDITED = echo 'not passed: upgrade a package that is listed as vulnerable with `make constraints UPGRADE="-P NAME"`; if packages were not found, the registry here has no list of vulnerabilities: run this where the public package index can be reached' >&2

# The packages of the environment with their licenses, in build/sbom.json (CycloneDX), and their known vulnerabilities.
audit: env
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -b constraints.txt -e ".[audit]"
	@mkdir -p build
	cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.json $(BIN)/python
	@python -S -c 'import json; print("build/sbom.json:", len(json.load(open("build/sbom.json"))["components"]), "packages")'
	@$(BIN)/uv pip freeze --quiet --python $(BIN)/python --exclude-editable >build/installed.txt
	pip-audit --strict --no-deps --disable-pip --progress-spinner off -r build/installed.txt || { $(NOT_AUDITED); exit 1; }

# Pinned versions of all extras with the hashes of their files. Versions stay, except with UPGRADE="-P NAME" or UPGRADE=-U.
constraints:
	$(BIN)/uv pip compile --quiet --all-extras --universal --python-version 3.11.9 --generate-hashes --no-annotate --no-header \
	  $(UPGRADE) pyproject.toml -o constraints.txt

# The documentation's site, in site/. The variable silences an advertisement for a successor of MkDocs.
docs: env
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet

format: env
	ruff check --fix .
	ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info build
