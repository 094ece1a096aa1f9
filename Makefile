# Etude from nothing but Python >= 3.11 and a C++ compiler: every target does the set-up it needs, in .venv.
#
#   make demo         teach the default model a task by GRPO, and show what it has learnt
#   make test         lint, types, tests (pulls both test models)
#   make lint         ruff and mypy alone
#   make bench        speed beside llama.cpp:  make bench ARGS="--llama-bin DIR --json FILE"
#   make web          build the chat page and the run pages into etude/serve/web (needs node >= 20)
#   make test-web     types and unit tests of the pages, and whether the built ones are built from them
#   make test-browser every feature of the pages, in a real Chromium against a real server
#   make test-peers   make the stored outputs of other programs anew, and compare (builds them: half an hour)
#   make test-server  llama.cpp's own server tests, on llama-server and on ours; schemathesis on the API (same)
#   make clean        remove what was built; models stay in the cache folder
#
# PYTHON=python3.12 chooses another Python; PYTEST="-x -k gguf" goes to pytest; ETUDE_CACHE moves the models.

PYTHON ?= python3
PYTEST ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
TORCH := "torch==2.13.0"
BUILD_DEPS := "scikit-build-core>=1.1" "nanobind>=3.1" "cmake>=3.26" "ninja>=1.11"
NATIVE := CMakeLists.txt $(wildcard etude/kernels/*.cpp etude/kernels/*.h)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: demo test lint web test-web test-browser chromium test-peers test-server bench clean

demo: $(VENV)/.built
	@$(BIN)/etude pull smollm2-135m >/dev/null
	@$(BIN)/python examples/demo.py $(ARGS)

test: lint
	@$(BIN)/etude pull smollm2-135m >/dev/null
	@$(BIN)/etude pull gemma3-270m >/dev/null
	$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-peers: $(VENV)/.built
	@$(BIN)/etude pull smollm2-135m >/dev/null
	@$(BIN)/etude pull gemma3-270m >/dev/null
	$(BIN)/python -m tests.peers $(ARGS)

test-server: $(VENV)/.built
	$(BIN)/python -m tests.peers.server_tests --out build/server-tests $(ARGS)
	$(BIN)/python -m tests.peers.api_schema

web: web/node_modules/.installed
	cd web && npm run --silent build

test-web: web/node_modules/.installed
	cd web && npm run --silent check && npm test --silent && npm run --silent committed

test-browser: $(VENV)/.built web/node_modules/.installed chromium
	@$(BIN)/etude pull smollm2-135m >/dev/null
	node --test --test-concurrency=1 $(ARGS) tests/browser/*.test.mjs

# Chromium is Debian's: where it is missing, and apt-get may be used, it is installed.
chromium:
	@command -v $${CHROMIUM:-chromium} >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  { echo "tests in a browser need Chromium: install it, or name it in CHROMIUM" >&2; exit 1; }

bench: $(VENV)/.built
	$(BIN)/python bench/engine_vs_llama_cpp.py $(ARGS)

clean:
	rm -rf build dist web/node_modules $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find etude tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The versions of the lock file. `npm ci` would also ask for optional parts of other platforms, which npm itself leaves
# out of the lock file where a registry lacks them.
web/node_modules/.installed: web/package-lock.json
	@command -v npm >/dev/null || { echo "this needs node >= 20 and npm" >&2; exit 1; }
	cd web && npm install --no-save --silent
	@touch $@

# Built in place without isolation: the second build compiles only what changed.
$(VENV)/.built: pyproject.toml $(NATIVE) | $(VENV)/.created
	@echo "building etude and its environment in $(VENV)"
	@$(BIN)/python -m pip install -q $(BUILD_DEPS) $(TORCH)
	@$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev]"
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("etude needs Python 3.11 or newer; this is %s: make PYTHON=python3.12 …" % sys.version.split()[0])'
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  { echo "etude needs a C++17 compiler: install g++ or clang, or name one in CXX" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "this Python cannot make an environment: install its venv module (Debian: python3-venv)" >&2; rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install -q --upgrade pip
	@touch $@
