#!/bin/sh
# Runs the test programs given as arguments, the shell tests and the examples; called by
# `make test`, which sets BUILD, CC, RUN, SAN_FLAGS and OMP. Every test ends with a line
# "NAME: N passed, N failed"; the last line here is their sum. A program that crashes or
# says nothing is one failure.
#
# Test programs run in the repository's root with the build folder as their argument; there
# lie toy.qsae and toy-sae.qsae, and tmp/ for their files.

BUILD=${BUILD:-build}
export BUILD CC RUN SAN_FLAGS OMP
export QSAE_BUILD="$BUILD"
# Idle threads sleep: with more threads than cores, spinning ones would eat the others' time.
export OMP_WAIT_POLICY=passive
total_passed=0
total_failed=0
log=$BUILD/tmp/run.log
mkdir -p "$BUILD/tmp"

run_one() {
    name=$1
    shift
    "$@" > "$log"
    code=$?
    line=$(grep -E '^[^ ]+: [0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1)
    counts=${line##*: }
    p=${counts%% passed*}
    f=${counts#*, }
    f=${f%% failed*}
    if [ -z "$line" ]; then
        cat "$log" >&2
        line="$name: gave no result (exit code $code): 0 passed, 1 failed"
        p=0 f=1
    elif [ "$code" -ne 0 ] && [ "$f" -eq 0 ]; then
        line="$line (but exit code $code)"
        f=1
    fi
    echo "$line"
    total_passed=$((total_passed + p))
    total_failed=$((total_failed + f))
}

for program in "$@"; do
    run_one "$(basename "$program")" $RUN "$program" "$BUILD"
done
for script in symbols test_build test_cli test_text test_check test_gguf_cli test_bench test_compare test_train test_eval test_examples; do
    run_one $script sh tests/$script.sh
done
# A converter killed at random moments; make big-convert does it with 2 GiB.
[ -n "$RUN" ] || run_one big_convert "$BUILD/tests/big_convert" "$BUILD/qsae" "$BUILD/tmp/big" 4096 256 20
# A training likewise, and resumed each time; make train-kill does it 60 times.
[ -n "$RUN" ] || run_one train_kill "$BUILD/tests/train_kill" "$BUILD/qsae" "$BUILD/toy.qsae" \
    examples/toy/corpus/valid.jsonl "$BUILD/tmp/train-kill" 8

echo "$total_passed passed, $total_failed failed"
[ "$total_failed" -eq 0 ]
