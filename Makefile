# `make demo` and `make test` work on a fresh machine with Python 3.11 or 3.12; both can be run again at once.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
  $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,13))' 2>/dev/null && echo $$p && break; done)
# An index for the torch wheel, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu on a machine without a GPU.
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)
# Processes of `make test`; the files of tests are dealt to them.
TEST_PROCESSES ?= 2
BIN := $(VENV)/bin
STAMP = $(shell cat pyproject.toml constraints.txt Makefile | cksum | cut -d' ' -f1)

.PHONY: demo test test-slow lint install install-dev install-slow sandbox clean

demo: install sandbox
	$(BIN)/distill run recipes/demo.yaml

test: install-dev sandbox lint
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

test-slow: install-slow sandbox
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed-$(STAMP)
install-dev: $(VENV)/.installed-dev-$(STAMP)
install-slow: $(VENV)/.installed-slow-$(STAMP)

$(VENV)/.installed-$(STAMP):
	@test -n "$(PYTHON)" || { echo "distill needs Python 3.11 or 3.12 on the PATH"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev-$(STAMP): $(VENV)/.installed-$(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[dev,fuzz,plot]
	@# the extra `xgrammar` without the 280 MB of Triton that it names for GPUs; the rest it needs is here
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps xgrammar apache-tvm-ffi
	@touch $@

$(VENV)/.installed-slow-$(STAMP): $(VENV)/.installed-dev-$(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[deepspeed,harness,ray]
	@touch $@

# Generated code runs only inside bubblewrap (Debian, Fedora and Arch package `bubblewrap`).
sandbox:
	@if command -v bwrap >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing bubblewrap (the sandbox for generated code) with apt-get"; \
	  apt-get install -y -qq bubblewrap >/dev/null || { apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null; }; \
	else echo "bubblewrap is missing: install your system's 'bubblewrap' package, then run this again"; exit 1; fi

clean:
	rm -rf $(VENV) runs build *.egg-info
