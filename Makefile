# Every target makes .venv itself; on a fresh machine only Python 3.11 or later is needed.
PYTHON ?= python3
# The build of torch: cpu, or any other folder of https://download.pytorch.org/whl, such as cu130 (see CONTRIBUTING.md).
TORCH ?= cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/$(TORCH)
LOCK := requirements.lock
LOCKED_TORCH = $(shell sed -n 's/^\(torch==[0-9.]*\) .*/\1/p' $(LOCK))
VENV := .venv
NEWEST := .venv-newest
LOWEST := .venv-lowest
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZOO_STAMP := $(VENV)/.installed-zoo
FORMATS_STAMP := $(VENV)/.installed-formats
RIVAL_STAMP := $(VENV)/.installed-rival
ZOO_OPTIONS ?= --jobs 2
EXAMPLES ?= 2000
DEVICE ?= cuda
YOLO ?= yolov8n
MUTATIONS ?= 10000
SEED ?= 0
TESTS ?=
TASKS ?=
METHODS ?=
RIVALS ?=
SEEDS ?=
BUDGETS ?=
EPOCHS ?=
QUICK ?=
OUTPUT ?= build/quality
JOBS ?= 2
THREADS ?= 1
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# $(call locked,SECTION,OPTIONS): a section of the lock file, nothing but the very files that it names.
locked = sed -n '/^\# --- $(1)$$/,/^\# --- /p' $(LOCK) > $(VENV)/$(1).lock && \
    $(PIP) --no-deps --require-hashes $(2) -r $(VENV)/$(1).lock
# The project's two distributions: what runs bundles, and the whole, which depends on it.
PROJECTS := ./l0compress_runtime .
EDITABLE := $(addprefix -e ,$(PROJECTS))
# $(call tested,VENV): the whole suite, or TESTS of it, by another environment than .venv, with the versions that it has.
tested = $(1)/bin/python -m pip freeze --exclude-editable && $(1)/bin/python -VV && \
    $(1)/bin/python -m pytest -n 2 --dist worksteal $(TESTS)

.PHONY: help install lock wheels docs release-check test test-all test-newest test-lowest check format demo errors
.PHONY: bench-equality bench-mnist bench-weights bench-int8 bench-resnet20 bench-sst2 bench-capture bench-zoo bench-growth bench-bundle bench-sparse bench-quality bench-quantization-aware bench-latency bench-family bench-step bench-compaction bench-leaner bench-engine-loops bench-ternary bench-rivals bench-generalization
.PHONY: fuzz fuzz-bundles fuzz-files mutants prove-resume prove-formats prove-cuda example-yolo example-yolo-train clean

help:
	@echo "make demo            compress a digits classifier to a quarter of its MACs, export, verify, bench (minutes)"
	@echo "make test            lint, types, layers, tests and doctests"
	@echo "make test-all        the same with the slow tests, as continuous integration runs it"
	@echo "make test-newest     all tests with the newest version of everything, in a fresh environment"
	@echo "make test-lowest     all tests with the lowest versions that pyproject.toml admits, in a fresh environment"
	@echo "make docs            the documentation as a site, in build/site; warnings are errors"
	@echo "make release-check   both distributions built, checked, installed and used as a user would (EXTRAS=; ten minutes)"
	@echo "make wheels          the package and its runtime, each as a wheel of its own, in dist/"
	@echo "make lock            look for newer versions of everything, and write requirements.lock (KEEP=1: only what is missing)"
	@echo "make check           lint, types and layers only"
	@echo "make format          rewrite the sources with ruff"
	@echo "make fuzz            2,000 random networks, shrunk and compared (EXAMPLES=, SEED=; about half an hour)"
	@echo "make fuzz-files      10,000 damaged and hostile files, read under limits (MUTATIONS=, SEED=)"
	@echo "make errors          write docs/errors.md from the inputs that the tests provoke"
	@echo "make mutants         faults planted in rules and surgery, each of which a test has to notice (minutes)"
	@echo "make prove-resume    kill a run 30 times at random moments, by SIGKILL and by SIGTERM, and compare hashes (minutes)"
	@echo "make prove-formats   a checkpoint, a transformer, a Llama and an ONNX file through every command"
	@echo "make prove-cuda      equality, resuming, commands and speed on a GPU, in one table (exits 2 where there is none)"
	@echo "make example-yolo    compress a YOLO of ultralytics by its own loss (YOLO=yolo11n-seg; ARGUMENTS=)"
	@echo "make example-yolo-train   the same in ultralytics' own trainer"
	@echo "make bench-equality  shrunk against masked dense models, PyTorch and ONNX Runtime"
	@echo "make bench-mnist     LeNet-300-100 on MNIST against magnitude pruning"
	@echo "make bench-weights   the same at 98 % zeros in single weights"
	@echo "make bench-int8      what int8 costs in accuracy, before and after shrinking"
	@echo "make bench-quantization-aware   what training with fake quantization gains in int8 (ten minutes; ARGUMENTS=)"
	@echo "make bench-resnet20  a pretrained ResNet-20 on CIFAR-10"
	@echo "make bench-sst2      a pretrained transformer, MiniLM, on SST-2 (about half an hour)"
	@echo "make bench-capture   capture, label, group and shrink a ResNet-50"
	@echo "make bench-zoo       300 architectures, shrunk and compared; writes docs/zoo.md (hours; resumes)"
	@echo "make fuzz-bundles    20,000 hostile bundles (minutes)"
	@echo "make bench-bundle    the sparse bundle against ONNX Runtime: MiniLM, LeNet-300-100, 10,000 runs from four threads"
	@echo "make bench-growth    how label, group and shrink grow with the network"
	@echo "make bench-latency   times that were asked for against times that are measured (an hour; resumes; ARGUMENTS=)"
	@echo "make bench-family    a family from one run against single runs (ARGUMENTS=\"--network mnist --target params=0.4,0.2 --epochs 12\")"
	@echo "make bench-step      a training step with gates against a dense one, time and memory"
	@echo "make bench-compaction   a run with and without removals while it trains"
	@echo "make bench-leaner    ONNX files with and without the export's passes (ten minutes)"
	@echo "make bench-engine-loops   which inner loops of the numba engine are worth vector code (two minutes)"
	@echo "make bench-quality   every method on every task, over seeds; writes docs/quality.md (QUICK=1: 20 minutes; or days; resumes; RIVALS=all adds other projects)"
	@echo "make bench-rivals    what other projects can cut of fourteen small networks (a minute)"
	@echo "make bench-generalization   few samples: dense and compressed, training and test error (minutes; resumes; ARGUMENTS=)"
	@echo "make bench-ternary   LeNet-300-100 on MNIST with ternary weights: error and files (minutes; ARGUMENTS=)"
	@echo "make bench-sparse    sparse layers against dense and int8 ones; writes docs/sparse.md (QUICK=1: two minutes)"

# torch by its hash where the lock file knows the CPU build, or else PyPI's, and by its version on other platforms. An
# index that cannot be reached is passed over. The last line but two brings what only the builds with CUDA depend on.
$(STAMP): pyproject.toml l0compress_runtime/pyproject.toml $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(filter cpu,$(TORCH)),{ $(call locked,torch-cpu,--extra-index-url $(TORCH_INDEX)); } || \
	    { echo "No CPU build of torch is in reach; PyPI's takes its place."; $(call locked,torch); })
	$(PIP) --no-deps --extra-index-url $(TORCH_INDEX) $(LOCKED_TORCH)
	$(call locked,develop)
	$(PIP) --extra-index-url $(TORCH_INDEX) $(LOCKED_TORCH)
	$(PIP) --no-deps --no-build-isolation $(EDITABLE)
	touch $(STAMP)

# torchvision and timm are wanted for their model definitions alone.
$(ZOO_STAMP): $(STAMP)
	$(call locked,models)
	touch $(ZOO_STAMP)

# Wanted by bench-zoo, bench-rivals and bench-quality RIVALS=, to compare with.
$(RIVAL_STAMP): $(LOCK) | $(ZOO_STAMP)
	$(call locked,rivals)
	touch $(RIVAL_STAMP)

install: $(STAMP)

# Wheels of an earlier version would be installed as well by whoever installs what is in the folder.
wheels: $(STAMP)
	rm -f dist/l0compress*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist $(PROJECTS)

# A section of the lock file in an environment of its own.
.venv-%/.installed: $(LOCK)
	rm -rf .venv-$* && $(PYTHON) -m venv .venv-$*
	sed -n '/^# --- $*$$/,/^# --- /p' $(LOCK) > .venv-$*/$*.lock
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .venv-$*/$*.lock
	touch $@

docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict --config-file .ci/mkdocs.yml
	@echo "build/site/index.html"

release-check: .venv-release/.installed
	.venv-release/bin/python .ci/release_check.py --torch $(LOCKED_TORCH) $(if $(EXTRAS),--extras $(EXTRAS))

lock: $(STAMP)
	$(BIN)/python .ci/lock.py --torch-index https://download.pytorch.org/whl/cpu $(if $(KEEP),--keep)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	NODE_OPTIONS=--max-old-space-size=6144 $(BIN)/pyright l0compress l0compress_runtime
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# A file's tests stay together, since some of them share what was expensive to make, until one process has none left.
test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The newest torch is the newest CPU build in reach; where builds have no such names, as on macOS, the newest of all.
test-newest:
	rm -rf $(NEWEST) && $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --no-deps --extra-index-url $(TORCH_INDEX) \
	    "torch$$($(NEWEST)/bin/python -m pip index versions torch --extra-index-url $(TORCH_INDEX) 2>/dev/null | \
	    grep -o '[0-9.]*+cpu' | head -1 | sed 's/^/==/')"
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ./l0compress_runtime -e '.[dev]' \
	    "torch==$$($(NEWEST)/bin/python -c 'from importlib.metadata import version; print(version("torch"))')"
	$(call tested,$(NEWEST))

test-lowest: $(STAMP)
	rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip compile --quiet --python-version 3.11 --resolution lowest-direct --all-extras --no-header --no-annotate \
	    --no-emit-package l0compress-runtime pyproject.toml --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --extra-index-url $(TORCH_INDEX) $$(grep ^torch== $(LOWEST)/lowest.txt)
	$(LOWEST)/bin/python -m pip install --quiet --no-deps -r $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation $(EDITABLE)
	$(call tested,$(LOWEST))

errors: $(STAMP)
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/errors_page.py

fuzz-files: $(STAMP)
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/fuzz_files.py --mutations $(MUTATIONS) --seed $(SEED)

fuzz: $(STAMP)
	PYTHONPATH=.:tests:tests/graph:benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/graph/fuzz.py \
	    --examples $(EXAMPLES) --seed $(SEED)

fuzz-bundles: $(STAMP)
	PYTHONPATH=.:tests:benchmarks OMP_NUM_THREADS=1 $(BIN)/python tests/hostile.py --examples 20000 --seed $(SEED)

mutants: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -W ignore tests/mutants.py

prove-resume: $(STAMP)
	$(BIN)/python benchmarks/resume.py

# Wants the build of torch for the GPU: make install TORCH=cu130.
prove-cuda: $(STAMP)
	$(BIN)/python benchmarks/prove_cuda.py --device $(DEVICE)

# ultralytics depends on torchvision, which would bring another torch: the models of torchvision do without.
example-yolo: EXAMPLE := examples/yolo.py
example-yolo-train: EXAMPLE := examples/yolo_train.py
example-yolo example-yolo-train: $(ZOO_STAMP)
	$(call locked,yolo)
	PYTHONPATH=benchmarks $(BIN)/python -c "import runpy, sys, torchvision_without_ops; torchvision_without_ops.load(); \
	    sys.argv[0] = '$(EXAMPLE)'; runpy.run_path(sys.argv[0], run_name='__main__')" $(YOLO) $(ARGUMENTS)

demo: $(STAMP)
	rm -rf build/demo
	$(BIN)/python examples/digits_train.py build/demo
	$(BIN)/l0compress inspect build/demo/digits.pt2
	$(BIN)/l0compress finetune build/demo/digits.pt2 --data digits --target macs=0.25 --threads 1 -o build/demo/run
	$(BIN)/l0compress export build/demo/run --format onnx
	$(BIN)/l0compress verify build/demo/run/model.onnx --against build/demo/run
	$(BIN)/l0compress bench build/demo/run
	$(BIN)/l0compress report build/demo/run

$(FORMATS_STAMP): $(STAMP)
	$(call locked,formats)
	touch $(FORMATS_STAMP)

prove-formats: $(FORMATS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/formats.py

bench-equality: $(STAMP)
	PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks/equality.py

bench-mnist: $(STAMP)
	$(BIN)/python benchmarks/mnist.py

bench-weights: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mnist.py --granularity weights

bench-quantization-aware: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quantization_aware.py $(ARGUMENTS)

bench-int8: $(STAMP)
	$(BIN)/python benchmarks/int8.py

bench-resnet20: $(STAMP)
	$(BIN)/python benchmarks/resnet20.py

bench-sst2: $(ZOO_STAMP) $(FORMATS_STAMP)
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/sst2.py

bench-capture: $(ZOO_STAMP)
	$(BIN)/python benchmarks/capture.py

bench-zoo: $(RIVAL_STAMP)
	PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BIN)/python -m zoo $(ZOO_OPTIONS)

bench-bundle: $(ZOO_STAMP) $(FORMATS_STAMP)
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/bundle.py

bench-growth: $(ZOO_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py

bench-latency: $(ZOO_STAMP)
	PYTHONPATH=benchmarks $(BIN)/python -W ignore benchmarks/latency.py targets $(ARGUMENTS)
	PYTHONPATH=benchmarks $(BIN)/python -W ignore benchmarks/latency.py model --batches 1 --threads 2 $(ARGUMENTS)

bench-family: $(STAMP)
	PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/family.py $(ARGUMENTS)

bench-step: $(ZOO_STAMP)
	PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/step.py $(ARGUMENTS)

bench-compaction: $(STAMP)
	PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/compaction.py

bench-leaner: $(ZOO_STAMP) $(FORMATS_STAMP)
	PYTHONPATH=benchmarks $(BIN)/python -W ignore benchmarks/leaner_files.py $(ARGUMENTS)

bench-engine-loops: $(STAMP)
	PYTHONPATH=.:benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/engine_loops.py $(ARGUMENTS)

bench-sparse: $(STAMP)
	PYTHONPATH=.:benchmarks $(BIN)/python benchmarks/sparse.py $(if $(QUICK),--quick)

# TASKS=sst2,housing METHODS=l0,fisher|all RIVALS=all SEEDS=0,1 BUDGETS=0.5 EPOCHS=0,4 choose; what is finished in OUTPUT is not run again.
bench-quality: $(ZOO_STAMP) $(FORMATS_STAMP) $(if $(RIVALS),$(RIVAL_STAMP))
	PYTHONPATH=.:benchmarks OMP_NUM_THREADS=$(THREADS) $(BIN)/python -W ignore -m quality --output $(OUTPUT) --jobs $(JOBS) \
	    --threads $(THREADS) $(if $(TASKS),--tasks $(TASKS)) $(if $(METHODS),--methods $(METHODS)) $(if $(RIVALS),--rivals $(RIVALS)) \
	    $(if $(SEEDS),--seeds $(SEEDS)) $(if $(BUDGETS),--budgets $(BUDGETS)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(QUICK),--quick) $(ARGUMENTS)

bench-rivals: $(RIVAL_STAMP)
	PYTHONPATH=.:benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m rivals.probe

bench-ternary: $(STAMP)
	PYTHONPATH=benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/ternary.py $(ARGUMENTS)

bench-generalization: $(STAMP)
	PYTHONPATH=.:benchmarks OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/generalization.py $(ARGUMENTS)

clean:
	rm -rf build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
