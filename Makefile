# qsae: GNU make, gcc or clang. `make help` lists the targets.
#
# A build lives in one folder, so that several can stand side by side:
#     make test BUILD=build/clang CC=clang
#     make test BUILD=build/asan SAN=address,undefined
#     make test BUILD=build/arm64 CC=aarch64-linux-gnu-gcc \
#               RUN="qemu-aarch64 -L /usr/aarch64-linux-gnu"

BUILD ?= build
CFLAGS ?= -O2 -g
OPENMP ?= 1 # 0: build without OpenMP
SAN ?=      # sanitizers: address,undefined or thread
RUN ?=      # what runs the programs that this build makes, if not this machine
WERROR ?= 0 # 1: warnings are errors

WARN = -Wall -Wextra -Wshadow -Wconversion
ifeq ($(strip $(WERROR)),1)
WARN += -Werror
endif
ifneq ($(strip $(SAN)),)
SAN_FLAGS = -fsanitize=$(strip $(SAN)) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif

# OpenMP is used where the compiler can build and link a program with it. libgomp is not
# instrumented, so the thread sanitizer would report its barriers: off there.
ifeq ($(strip $(OPENMP))$(findstring thread,$(SAN)),1)
OMP := $(shell d=$$(mktemp -d) && \
         echo 'int main(void) { return omp_get_max_threads() < 1; }' > $$d/a.c && \
         $(CC) -fopenmp -include omp.h $$d/a.c -o $$d/a 2>/dev/null && echo -fopenmp; \
         rm -rf "$$d")
endif

# Needed flags, apart from CFLAGS so that overriding that does not lose them.
OWN = -std=c99 $(WARN) $(SAN_FLAGS) $(OMP) -MMD -MP
COMPILE = $(CC) $(CFLAGS) $(OWN) $(CPPFLAGS)
LINK = $(CC) $(CFLAGS) $(SAN_FLAGS) $(OMP) $(LDFLAGS)

TOOL_OBJECTS = $(patsubst %.c,$(BUILD)/%.o,$(wildcard tools/*.c))
TOOL_PARTS = $(filter-out $(BUILD)/tools/main.o,$(TOOL_OBJECTS))
TESTS = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
# White-box tests include qsae.c itself and must not be linked with it.
WHITEBOX = $(patsubst tests/%.c,$(BUILD)/tests/%,\
             $(shell grep -l '^.include "../qsae.c"' tests/test_*.c tests/fuzz_*.c 2>/dev/null))
HELPERS = $(patsubst %,$(BUILD)/tests/%,print_tensors big_convert train_kill random_model) # what other tests run
EXAMPLES = $(patsubst examples/%.c,$(BUILD)/examples/%,$(wildcard examples/[0-9]*.c))
FUZZERS = $(patsubst tests/%.c,$(BUILD)/fuzz/%,$(wildcard tests/fuzz_*.c))
REPLAYS = $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/fuzz_*.c))
TOY = $(BUILD)/toy.qsae $(BUILD)/toy-sae.qsae

.PHONY: all demo suite test check asan fuzz toy examples symbols campaign-tokenizer big-convert train-kill clean help
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:

all: $(BUILD)/qsae $(BUILD)/libqsae.a $(BUILD)/libqsae.so ## the program and the libraries

demo: $(BUILD)/qsae $(TOY) ## find the refusal feature of the toy model and steer with it
	@RUN="$(RUN)" BUILD="$(BUILD)" sh tools/demo.sh

# Two levels of sparsity at the three sites of every layer, and what they are worth.
TRAIN_TEXT = examples/toy/corpus/train.jsonl
SUITE_FLAGS = --sites resid_post,mlp_out,attn_out --layers all --arch jumprelu --width 512 \
              --l0 4,16 --context 128 --batch 512 --tokens 800000 --lr 1e-3
suite: $(BUILD)/qsae $(BUILD)/toy.qsae ## train and evaluate SAEs at all sites and layers of the toy (minutes): build/suite
	rm -rf $(BUILD)/suite
	$(RUN) $< train $(BUILD)/toy.qsae --data $(TRAIN_TEXT) $(SUITE_FLAGS) -o $(BUILD)/suite
	$(RUN) $< eval $(BUILD)/toy.qsae $(BUILD)/suite/suite.qsae --data examples/toy/corpus/test.jsonl \
	    --context 128 --tokens 6000 --controls random,pca --joint site,all -o $(BUILD)/suite
	@echo "the report is $(BUILD)/suite/report.html"

test: $(BUILD)/qsae $(TESTS) $(HELPERS) $(EXAMPLES) $(REPLAYS) $(TOY) ## all tests that need only gcc and make
	@CC="$(CC)" RUN="$(RUN)" BUILD="$(BUILD)" SAN_FLAGS="$(SAN_FLAGS)" OMP="$(OMP)" \
	    sh tests/run.sh $(TESTS) $(REPLAYS)

check: test

asan: ## the tests with AddressSanitizer and UndefinedBehaviorSanitizer, in build/asan
	$(MAKE) test BUILD=build/asan SAN=address,undefined CFLAGS="-O1 -g"

fuzz: $(FUZZERS) ## fuzz every reader (needs clang), FUZZ_SECONDS each
	@BUILD="$(BUILD)" sh tests/fuzz.sh $(FUZZERS)

toy: $(TOY) ## convert the toy model and its SAE

examples: $(EXAMPLES) ## build the example programs

symbols: ## check what qsae.c as an object exports and imports
	@CC="$(CC)" BUILD="$(BUILD)" sh tests/symbols.sh

campaign-tokenizer: $(BUILD)/qsae $(BUILD)/libqsae.so ## hours: the tokenizer against the reference on all text to be had
	sh tests/reference/campaign_fetch.sh
	PYTHONDONTWRITEBYTECODE=1 $${PYTHON:-python3} tests/reference/campaign_tokenizer.py

big-convert: $(BUILD)/qsae $(BUILD)/tests/big_convert ## minutes, 5 GiB: time and memory of a 2 GiB conversion
	$(BUILD)/tests/big_convert $(BUILD)/qsae $(BUILD)/tmp/big-convert

train-kill: $(BUILD)/qsae $(TOY) $(BUILD)/tests/train_kill ## minutes: training killed at 60 random moments and resumed
	$(BUILD)/tests/train_kill $(BUILD)/qsae $(BUILD)/toy.qsae examples/toy/corpus/valid.jsonl $(BUILD)/tmp/train-kill 60

clean: ## remove the build folder
	rm -rf "$(BUILD)"

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

# ------------------------------------------------------------------------------- library

$(BUILD)/qsae.o: qsae.c
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@

$(BUILD)/qsae-pic.o: qsae.c
	@mkdir -p $(@D)
	$(COMPILE) -fPIC -c $< -o $@

$(BUILD)/libqsae.a: $(BUILD)/qsae.o
	rm -f $@ && $(AR) rcs $@ $<

$(BUILD)/libqsae.so: $(BUILD)/qsae-pic.o
	$(LINK) -shared $< -o $@ -lm

# ------------------------------------------------------------------------------- program

$(BUILD)/tools/%.o: tools/%.c
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@

$(BUILD)/libtools.a: $(TOOL_PARTS)
	rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/qsae: $(TOOL_OBJECTS) $(BUILD)/qsae.o
	$(LINK) $^ -o $@ -lm

$(BUILD)/toy.qsae: $(BUILD)/qsae $(wildcard examples/toy/model/*)
	$(RUN) $< convert examples/toy/model -o $@

$(BUILD)/toy-sae.qsae: $(BUILD)/qsae $(wildcard examples/toy/sae/*)
	$(RUN) $< convert examples/toy/sae -o $@

# --------------------------------------------------------------------- tests and examples

$(BUILD)/tests/%.o: tests/%.c
	@mkdir -p $(@D)
	$(COMPILE) -c $< -o $@

# A fuzz target under any compiler: replay.c runs its seeds and simple changes of them.
LIBRARY = $(BUILD)/libtools.a $(BUILD)/qsae.o
$(filter-out $(WHITEBOX),$(TESTS)) $(HELPERS): $(BUILD)/%: $(BUILD)/%.o $(LIBRARY)
	$(LINK) $^ -o $@ -lm -pthread

$(filter-out $(WHITEBOX),$(REPLAYS)): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/tests/replay.o $(LIBRARY)
	$(LINK) $^ -o $@ -lm

$(filter $(WHITEBOX),$(TESTS)): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/libtools.a
	$(LINK) $^ -o $@ -lm -pthread

$(filter $(WHITEBOX),$(REPLAYS)): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/tests/replay.o $(BUILD)/libtools.a
	$(LINK) $^ -o $@ -lm

$(BUILD)/examples/%: examples/%.c $(BUILD)/qsae.o
	@mkdir -p $(@D)
	$(COMPILE) $(filter %.c %.o,$^) -o $@ -lm -pthread

# The fuzzer needs to see the branches of the code under test: everything once more.
FUZZ_FLAGS = -std=c99 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_PARTS = $(patsubst $(BUILD)/%,$(BUILD)/fuzz/%,$(TOOL_PARTS)) $(BUILD)/fuzz/qsae.o
$(BUILD)/fuzz/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@

$(BUILD)/fuzz/libparts.a: $(FUZZ_PARTS)
	rm -f $@ && $(AR) rcs $@ $^

# Of an archive the linker takes only what is missing: a white-box target brings its qsae.c.
$(BUILD)/fuzz/fuzz_%: $(BUILD)/fuzz/tests/fuzz_%.o $(BUILD)/fuzz/libparts.a
	$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer $^ -o $@ -lm

FUZZ_CC ?= clang

-include $(wildcard $(BUILD)/*.d $(BUILD)/tools/*.d $(BUILD)/tests/*.d $(BUILD)/examples/*.d \
           $(BUILD)/fuzz/*.d $(BUILD)/fuzz/*/*.d)
