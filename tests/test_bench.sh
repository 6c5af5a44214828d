#!/bin/sh
# `qsae bench` from outside: what it prints, and what it refuses. How fast anything is, is
# not for a test.

. tests/lib.sh
begin test_bench

model=$BUILD/toy.qsae

# fails CODE PATTERN ARGUMENTS...: that exit code and one line that has the pattern
fails() {
    code=$1
    pattern=$2
    shift 2
    $QSAE "$@" > "$work/out" 2> "$work/err"
    is=$?
    if [ $is -eq "$code" ] && [ ! -s "$work/out" ] && [ "$(wc -l < "$work/err")" -eq 1 ] &&
        grep -q -e "^qsae: .*$pattern" "$work/err"; then
        ok
    else
        bad "exit code $is, '$(head -n 2 "$work/err")' instead of $pattern: $*"
    fi
}

# works ARGUMENTS...: exit code 0, nothing on stderr, stdout to $work/out
works() {
    if $QSAE "$@" > "$work/out" 2> "$work/err" && [ ! -s "$work/err" ]; then
        ok
    else
        bad "failed: $* ($(head -n 1 "$work/err"))"
    fi
}

# has PATTERN: the output, as one line, matches the whole pattern
has() {
    if tr -d '\n' < "$work/out" | grep -Eqx -e "$1"; then
        ok
    else
        bad "not as in $1: $(head -c 600 "$work/out")"
    fi
}

number='[0-9]+(\.[0-9]+)?(e[-+][0-9]+)?'
signed="-?$number"
text='"([^"\\]|\\.)*"'
maybe="($number|null)"
machine="\{\"cpu\":$text,\"arch\":$text,\"os\":$text,\"compiler\":$text,\"cpus\":[0-9]+,\"threads\":1"
machine="$machine,\"openmp\":(true|false),\"isa\":\"[a-z0-9]+\",\"qsae\":\"[0-9.]+\"\}"
probe="\{\"read_gbs\":$number,\"fma_gflops\":$number,\"madd_gops\":$maybe,\"vnni_gops\":$maybe,\"amx_gops\":$maybe\}"
result() { # NAME UNIT
    printf '%s' "\{\"name\":\"$1\",\"type\":\"[a-z0-9]+\",\"shape\":$text,\"n\":[0-9]+(,\"context\":[0-9]+)?"
    printf '%s' ",\"value\":$signed,\"unit\":\"$2\",\"limit\":$maybe,\"share\":$maybe"
    printf '%s' ",\"samples\":\[$signed(,$signed)*\],\"limits\":\[($number(,$number)*)?\]\}"
}

works bench --help
check "--help says how" grep -q '^Usage: qsae bench' "$work/out"
works bench --only probe --seconds 0.05 --threads 1
check "the probe alone" grep -Eq '^probed:  read [0-9.]+ GB/s  f32 FMA [0-9.]+ GFLOP/s' "$work/out"
works bench --only probe --seconds 0.05 --threads 1 --json
has "\{\"machine\":$machine,\"probe\":$probe,\"results\":\[\]\}"

works bench --model "$model" --only open,decode --seconds 0.05 --threads 1 --json
has "\{\"machine\":$machine,\"probe\":$probe,\"results\":\[($(result open s),){2}$(result decode tok/s)\]\}"
check "shape and type" grep -q '"name":"decode","type":"bf16","shape":"toy.qsae","n":1,"context":1,' "$work/out"
works bench --model "$model" --only rss,decode,eval_many,capture_all --seconds 0.02 --threads 1 --context 5
for name in rss decode eval_many capture_all; do
    check "a line of $name" grep -q "^$name .* %  " "$work/out"
done
if [ -n "$RUN" ]; then
    skip "SAEs beside decode under $RUN: minutes"
else
    works bench --model "$model" --only eval_edits,sae_all,sensors,eval_many_batch --seconds 0.02 --threads 2
    for name in eval_edits sae_all sensors eval_many_batch; do
        check "a line of $name" grep -q "^$name .* %  " "$work/out"
    done
fi
works bench --model "$model" --only decode_context --context 600 --kv bf16 --seconds 0.02 --threads 1 --json
has "\{\"machine\":$machine,\"probe\":$probe,\"results\":\[($(result decode_context tok/s),?){2}\]\}"
check "contexts" grep -q '"context":512,' "$work/out"
works bench --model "$model" --only decode --seconds 0.02 --threads 1 --isa scalar
check "the kernels asked for" grep -q 'kernels scalar' "$work/out"

fails 2 "'x' is one argument too many" bench x
fails 2 "--shape: '2B' is none of 0.6B" bench --shape 2B
fails 2 "--type: 'q5' is none of" bench --type q5
fails 2 "--only: 'decoed' is none of" bench --only decode,decoed
fails 2 "--only: '' is none of" bench --only decode,
fails 2 'only one of --shape and --model' bench --shape 8B --model "$model"
fails 2 '--type is for random weights' bench --type q8 --model "$model"
fails 2 "--kv: 'f8' is none of f32 f16 bf16" bench --kv f8
fails 2 '--seconds: 0 is not' bench --seconds 0
fails 2 '--batch: 0 is not in 1..65536' bench --batch 0
fails 2 'needs a value' bench --context
fails 1 'toy.sae.qsae' bench --model "$BUILD/toy-sae.qsae" --only decode
fails 1 'missing.qsae' bench --model "$work/missing.qsae" --only decode

finish
