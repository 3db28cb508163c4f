# Two commands for a fresh machine with Python 3.11, git and make: `make demo` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
MODEL  := hub_configs/jepa-daam-24khz-small
SAMPLE := tests/audio/1688-142285-0003.flac

.PHONY: demo test check test-slow screenshot test-transformers train-smoke evaluate evaluate-all lint types fast-tests bench bench-training format clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/jepa-audio info
	$(BIN)/jepa-audio encode $(SAMPLE) --output demo --overwrite
	$(BIN)/jepa-audio decode demo/$(notdir $(SAMPLE:.flac=.jepa)) --output demo --overwrite
	$(BIN)/jepa-audio plot $(SAMPLE) --output demo/$(notdir $(SAMPLE:.flac=.png))
	rm -rf demo/evaluation
	$(BIN)/jepa-audio evaluate $(dir $(SAMPLE)) --system $(MODEL) --judges pitch,opinion --output demo/evaluation
	@sed -n '/^## audio/,/^## Tokens/p' demo/evaluation/report.md | sed '$$d'
	@ls -l demo

test: check

check: lint types fast-tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# A process for each of two cores, each test file in one of them.
TEST_PROCESSES ?= 2
fast-tests: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadfile

test-slow: $(VENV)/.browser
	$(BIN)/python -m pytest -m slow

# The Space and a browser to see it with: Debian's Chromium, or else the one that playwright downloads.
$(VENV)/.browser: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,demo]' playwright
	command -v chromium || apt-get install --yes chromium || $(BIN)/playwright install --with-deps chromium
	touch $@

# The picture of the page in hub_configs/, with the model that ships.
screenshot: $(VENV)/.browser
	SPACE_SCREENSHOT=hub_configs/space/space.png $(BIN)/python -m pytest tests/test_space.py -m slow
	cp hub_configs/space/space.png $(MODEL)/
	$(BIN)/python -m training.model_card $(MODEL)

test-transformers: $(VENV)/.installed
	$(BIN)/python tests/transformers_suite/run.py

train-smoke: $(VENV)/.installed
	$(BIN)/python -m tests.train_smoke

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.speed

bench-training: $(VENV)/.installed
	$(BIN)/python -m benchmarks.training

# make evaluate RECORDINGS=folder CHECKPOINT=folder [SYSTEMS="codec2:700C opus:6"] [EVALUATION="--recognizer=folder ..."]
OUTPUT   ?= runs/evaluation
MUSIC    ?= $(wildcard $(RECORDINGS)/music)
EVALUATE  = $(BIN)/jepa-audio evaluate $(RECORDINGS) --output $(OUTPUT) $(EVALUATION) $(addprefix --system=,$(CHECKPOINT) $(SYSTEMS))
evaluate: $(VENV)/.evaluation
	$(EVALUATE)

# The same, with robustness and speed in the report.
evaluate-all: evaluate
	$(BIN)/python -m training.robustness $(CHECKPOINT) $(RECORDINGS) --max-clips 8 $(addprefix --music=,$(MUSIC)) --output $(OUTPUT)
	$(BIN)/python -m training.codec_speed jepa:$(CHECKPOINT) model:mimi model:encodec $(filter-out folder:%,$(SYSTEMS)) \
		--recording $(SAMPLE) --seconds 3 --output $(OUTPUT)/speed.json
	$(EVALUATE)  # nothing is left to judge: the report takes in the other two

$(VENV)/.evaluation: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,evaluation]'
	touch $@

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
