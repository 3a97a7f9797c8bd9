# Two commands: `make quickstart` runs the whole method on two CPU cores, `make test` passes the tests. Both set up.

PYTHON ?= python3.11
RUN ?= runs/quickstart
EDITOR_FOLDER ?= $(RUN)/editors/finetuned
BIN := .venv/bin
READY := .venv/ready
WEIGHTS := hive_ray/shapes/weights/reward/card.json

# Byte code is kept, whatever the machine is set to: else each process compiles the project anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart study serve annotate test tables site clean

quickstart: $(READY) $(WEIGHTS)
	$(BIN)/python -m jobs.pipeline shapes --run $(RUN)

study: $(READY) $(WEIGHTS)
	$(BIN)/python -m studies.study

serve: $(READY)
	$(BIN)/python -m serve.start --editor $(EDITOR_FOLDER)

annotate: $(READY)
	$(BIN)/python -m serve.annotate --run $(RUN)

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The table of jobs in docs/pipeline.md.
tables: $(READY)
	$(BIN)/python docs/documents.py

# The documents as a site, in build/site; the variable hides an advertisement.
site: tables
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in build/site: open build/site/index.html, or $(BIN)/mkdocs serve"

# The models of the embedded domain, made from nothing where they are not shipped.
$(WEIGHTS): | $(READY)
	$(BIN)/python -m studies.pretrain_shapes

# Deletes the environment, and all of runs/ with every run in it.
clean:
	rm -rf .venv runs

# torch first and exactly, so that no later package brings another. On Linux PyPI's is the CUDA build, several GB, which
# a GPU wants. Without one, name the CPU index of pytorch.org in PIP_EXTRA_INDEX_URL: pip then prefers 2.13.0+cpu.
# Nothing is compiled but what the last line imports, a quarter of the modules that come along; it also shows whether
# they all fit together.
$(READY): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is wanted as '$(PYTHON)'; name yours: make PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv --upgrade-deps .venv
	$(BIN)/pip install --quiet --no-compile torch==2.13.0
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c "from hive_ray.cluster.noise import quiet_libraries; quiet_libraries(starts_cluster=True); import jobs.pipeline, serve.editor, serve.annotate"
	touch $(READY)
