# Two commands suffice: `make run` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PRECISION
# Without a comment behind it: make keeps the blanks, and ld.so refuses them. See src/runtime.py.
export GLIBC_TUNABLES ?= glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0
COMPILE := $(BIN)/uv pip compile -q --universal --python-version 3.11 --fork-strategy fewest --no-header --no-annotate
STAGES := explore preprocess train attack explain

# The variables of the command line, but for those that every command reads. The pipeline gets each
# as a word NAME="$NAME", its value from the environment; the other commands refuse what they do not
# read.
GIVEN := $(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$v))
GIVEN := $(filter-out PYTHON VENV PRECISION GLIBC_TUNABLES,$(GIVEN))
INHERITED := $(foreach v,DATASET RUN,$(if $(findstring environment,$(origin $v)),$v))
PIPELINE := $(BIN)/python -m src.pipeline $(foreach v,$(GIVEN) $(INHERITED),$v="$$$v")
NAMED := $(filter $(STAGES),$(MAKECMDGOALS))
READ_test := ARGS
READ_bench := RUN ARGS
READ_growth := ARGS
READ_evaluate := $(filter-out CHECKPOINTS,$(GIVEN))
READ_publish := RUN CHECKPOINTS
READ_collect := RUNS
READ_docs := RUNS
READ_page := DATASET RUN CHECKPOINTS TRACK ARGS
READ_try := TRACK MODEL OUT ARGS
$(foreach goal,$(filter-out run show $(STAGES),$(or $(MAKECMDGOALS),help)),\
	$(foreach v,$(filter-out $(READ_$(goal)),$(GIVEN)),$(error make $(goal) does not read $v, which may be \
	mistyped or meant for another command: it reads $(or $(READ_$(goal)),no variable))))

.PHONY: help run show $(STAGES) evaluate publish lab test bench stages growth collect docs page try lock clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z $$()A-Z]+:.*## ' $(MAKEFILE_LIST) | sed 's/\$$(STAGES)/explore, preprocess, train, attack, explain/; s/:.*## /: /'
	@echo 'variables: DATASET=synthetic|gtzan_mini|gtzan|<folder>  RUN=<name of the run>  EFFORT=quick|full'
	@echo 'and each parameter that `make show` prints: make train RECIPES=improved EPOCHS=20; a run remembers them'

run: $(VENV)/run ## set everything up and run what changed of the five notebooks; RESET=1: default parameters
	$(PIPELINE)

show: $(VENV)/run ## print the parameters of a run, and which stages are up to date: make show RUN=synthetic
	$(PIPELINE) show

$(STAGES): $(VENV)/run ## run one notebook, whether or not anything changed
	$(if $(filter $@,$(firstword $(NAMED))),$(PIPELINE) $(NAMED),@:)

evaluate: $(VENV)/run ## attack a network of yours: make evaluate MODEL=package.module:function RUN=gtzan
	$(if $(MODEL),$(subst src.pipeline,src.evaluate_own,$(filter-out MODEL=%,$(PIPELINE))) CHECKPOINTS="$$MODEL",$(error make evaluate needs MODEL))

publish: $(VENV)/run ## write networks of a run to pretrained/: make publish RUN=gtzan CHECKPOINTS=improved,robust
	$(BIN)/python -m src.models.publish "$(or $(RUN),$(error make publish needs RUN))" "$(or $(CHECKPOINTS),$(error make publish needs CHECKPOINTS))"

lab: $(VENV)/run ## open JupyterLab on the notebooks; executed ones are in results/notebooks/
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

test: $(VENV)/test ## set everything up, check the style, run the tests (long campaigns: ARGS="-m long")
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(VENV)/run ## compare the speed of each stage with a plain implementation: make bench RUN=synthetic
	$(BIN)/python -m benchmarks.bench $(if $(RUN),--run "$(RUN)") $(ARGS)

stages: $(VENV)/run ## measure time and memory of each stage of `make run`
	$(BIN)/python -m benchmarks.stages

growth: $(VENV)/run ## measure time and memory of notebooks 1 to 3 while the corpus grows
	$(BIN)/python -m benchmarks.growth $(ARGS)

collect: $(VENV)/run ## gather the results of runs to be committed: make collect RUNS=gtzan,gtzan_mini
	$(BIN)/python -m src.report collect "$$RUNS"

docs: $(VENV)/run ## render the pages of docs/templates/; copy figures and notebooks: make docs RUNS=gtzan
	$(BIN)/python -m src.report docs "$$RUNS"

page: $(VENV)/run ## build the interactive page of a run: make page RUN=gtzan CHECKPOINTS=pretrained/robust TRACK=song.mp3
	$(BIN)/python -m app $(if $(DATASET),--dataset "$(DATASET)") $(if $(RUN),--run "$(RUN)") \
		$(if $(CHECKPOINTS),--checkpoints "$$CHECKPOINTS") $(if $(TRACK),--tracks "$$TRACK") $(ARGS)

try: $(VENV)/run ## report of your own track: make try TRACK=song.mp3 MODEL=robust,improved; of a folder: a table
	$(BIN)/python -m app.try_track $(if $(OUT),--out "$$OUT") $(if $(MODEL),--model "$$MODEL") $(ARGS) \
		-- $(if $(TRACK),"$$TRACK",$(error make try needs TRACK, an audio file or a folder))

lock: $(VENV)/test ## pin anew in requirements*.txt what pyproject.toml asks for
	$(BIN)/pip install -q uv
	echo '-e .' | $(COMPILE) - -o requirements.txt
	grep -v '^-e' requirements.txt > $(VENV)/pins.txt
	echo '-e .[dev]' | $(COMPILE) - -c $(VENV)/pins.txt -o $(VENV)/all.txt
	(echo '-r requirements.txt'; grep -vxFf requirements.txt $(VENV)/all.txt | grep -v '^-e') > requirements-dev.txt

clean: ## remove all data and results that `make run` can make again
	rm -rf data/raw data/processed results/audio results/figures results/models results/notebooks
	rm -rf results/page results/try
	find results/metrics -mindepth 1 -maxdepth 1 ! -name real ! -name embedded ! -name '*.json' \
		-exec rm -rf {} +

$(VENV)/run: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: name one with make PYTHON=python3.12")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -r requirements.txt
	touch $@

$(VENV)/test: $(VENV)/run requirements-dev.txt
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@
