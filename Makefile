# Everything runs in .venv, made from pyproject.toml with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install install-test demo test check screenshot bench peers clean
install: .venv/.installed
install-test: .venv/.installed-test

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: install
	$(BIN)/snakemake --cores all

# A worker more than there are cores, as some wait for other processes; each with one thread. Files of many tests are not
# put first: the whole runs are, which are few and long. Modules are compiled once for all processes that tests start,
# whatever the environment says. What was skipped is said, and why.
test: install-test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder -rs

check: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile
	$(BIN)/python -m tests.lint_snakefile

# The README's picture of the demo's report. Needs chromium.
screenshot: install-test demo
	$(BIN)/python -m tests.browser.screenshot results/demo/report analyze/report/screenshot.png

bench: install-test
	$(BIN)/python -m tests.benchmarks

# The environments that `make bench` compares with. Not needed for anything else.
peers: install
	for peer in sae-lens==6.54.12 eai-sparsify==1.3.3 sae-dashboard==0.8.0; do \
	  test -x .peers/$${peer%%=*}/bin/python || $(PYTHON) -m venv .peers/$${peer%%=*}; \
	  .peers/$${peer%%=*}/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 $$peer; \
	done
	# SAEDashboard holds NumPy below 2; and its torchvision, which it does not need, is another torch's.
	.peers/sae-dashboard/bin/python -m pip install -q --disable-pip-version-check "pyarrow<21"
	.peers/sae-dashboard/bin/python -m pip uninstall -q -y torchvision torchaudio

clean:
	rm -rf .venv .peers .snakemake results resources
