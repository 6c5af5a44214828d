#!/bin/sh
# `qsae eval`: the same bytes whatever the slices, the threads, the instruction set and the
# moments at which it is killed; and what it refuses. Its numbers: tests/reference/eval.py.

. tests/lib.sh
begin test_eval

model=$BUILD/toy.qsae
suite=$work/suite.qsae
text=$work/text.jsonl
head -n 9 examples/toy/corpus/test.jsonl > "$text"
if $QSAE train "$model" --data "$text" --sites resid_post,mlp_out --layers 1,2 --width 48 \
    --l0 6 --tokens 600 --context 64 --batch 64 -o "$work/train" > "$work/log" 2>&1; then
    mv "$work/train/suite.qsae" "$suite"
else
    bad "no suite to evaluate: $(tail -n 1 "$work/log")"
fi

# evaluate DIR ARGUMENTS...: with the settings that all here have
evaluate() {
    to=$1
    shift
    $QSAE eval "$model" "$suite" --data "$text" --tokens 80 --context 32 --seed 7 \
        --controls random,pca --joint site,all -o "$to" "$@" > "$work/out" 2> "$work/err"
}

# works ARGUMENTS...: exit code 0 and nothing said
works() {
    if evaluate "$@" && [ ! -s "$work/err" ] && [ ! -s "$work/out" ]; then
        ok
    else
        bad "failed: $* ($(head -n 1 "$work/err"))"
    fi
}

# same DIR: its results are those of the whole run
same() {
    for f in eval.json eval.csv report.html; do
        check "$1/$f is as of one run" cmp -s "$work/whole/$f" "$1/$f"
    done
}

works "$work/whole"
check "units" test "$(grep -c '^{"kind":"' "$work/whole/eval.json")" -eq 15
check "joint splices" test "$(grep -c '^{"kind":"joint"' "$work/whole/eval.json")" -eq 3
check "no state is left" test ! -e "$work/whole/eval.state"
check "the page ends" grep -q '^</main></body></html>$' "$work/whole/report.html"
check "the page has plots" test "$(grep -c '^<svg' "$work/whole/report.html")" -ge 10
check "and no script" sh -c "! grep -qi -e '<script' -e 'http' '$work/whole/report.html'"
evaluate "$work/whole"
check "results that are there are not made again" grep -q 'has the results' "$work/out"

works "$work/scalar" --isa scalar
same "$work/scalar"
for n in 1 2; do
    $QSAE eval "$model" "$suite" --data "$text" --tokens 40 --name mlp_out.2 --threads $n \
        -o "$work/threads$n" 2> "$work/err"
done
check "two threads, the same bits" cmp -s "$work/threads1/eval.json" "$work/threads2/eval.json"

if [ -n "$RUN" ]; then
    skip "slices, kills and refusals under $RUN: minutes, and the same on every machine"
    finish
    exit
fi

for i in 3 1 2; do
    works "$work/parts" --only $i/3
done
check "slices come to JSON files" test -s "$work/parts/eval-2-of-3.json"
$QSAE eval --merge "$work/parts" -o "$work/merged" 2> "$work/err"
same "$work/merged"

# Killed at random moments, of every part, until it comes through.
kills=0
round=0
while [ ! -e "$work/killed/eval.json" ] && [ $round -lt 60 ]; do
    round=$((round + 1))
    $BUILD/qsae eval "$model" "$suite" --data "$text" --tokens 80 --context 32 --seed 7 \
        --controls random,pca --joint site,all -o "$work/killed" --save-every 1 \
        > "$work/out" 2>&1 &
    pid=$!
    [ $round -gt 9 ] || { sleep "0.0$((round * 7 % 10))$round" && kill -9 $pid; } 2> /dev/null
    wait $pid 2> /dev/null
    [ $? -ne 137 ] || kills=$((kills + 1))
done
check "it was killed now and then ($kills times)" test $kills -gt 2
same "$work/killed"

# fails CODE PATTERN ARGUMENTS...: that exit code and one line that has the pattern
fails() {
    code=$1
    pattern=$2
    shift 2
    $QSAE eval "$@" > "$work/out" 2> "$work/err"
    is=$?
    if [ $is -eq "$code" ] && [ "$(wc -l < "$work/err")" -eq 1 ] &&
        grep -q -e "^qsae: .*$pattern" "$work/err"; then
        ok
    else
        bad "exit code $is, '$(head -n 2 "$work/err")' instead of $pattern: $*"
    fi
}

o=$work/o
fails 2 'needs MODEL.qsae and SAE.qsae' "$model" --data "$text" -o "$o"
fails 2 '^*-o DIR is needed' "$model" "$suite" --data "$text"
fails 2 '--data FILE or DIR is needed' "$model" "$suite" -o "$o"
fails 2 '--only' "$model" "$suite" --data "$text" -o "$o" --only 4/3
fails 2 '--only' "$model" "$suite" --data "$text" -o "$o" --only 0/3
fails 2 "--only: '3' is not of the form" "$model" "$suite" --data "$text" -o "$o" --only 3
fails 1 '5 slices of 4 SAEs' "$model" "$suite" --data "$text" -o "$o" --only 1/5
fails 2 "--controls: 'pca,pca' is not" "$model" "$suite" --data "$text" -o "$o" --controls pca,pca
fails 2 '--merge DIR takes only' "$model" "$suite" --merge "$o" -o "$o"
fails 1 '--context 4096: the model has 2048' "$model" "$suite" --data "$text" -o "$o" --context 4096
fails 1 'No such file' "$model" "$suite" --data "$work/none.txt" -o "$o"
: > "$work/empty.txt"
fails 1 'no text of at least 2 tokens' "$model" "$suite" --data "$work/empty.txt" -o "$o"
printf 'na\357ve' > "$work/latin.txt"
fails 1 'line 1: byte 0xef is not UTF-8' "$model" "$suite" --data "$work/latin.txt" -o "$o"
fails 1 'none of its 4 SAEs is at attn_z' "$model" "$suite" --data "$text" -o "$o" --site attn_z
fails 1 'is not a folder' "$model" "$suite" --data "$text" -o "$text"
fails 1 'text.jsonl' "$model" "$text" --data "$text" -o "$o"
fails 1 'of other settings' "$model" "$suite" --data "$text" -o "$work/whole"
fails 1 'of other settings' "$model" "$suite" --data "$text" --tokens 80 --context 32 --seed 7 \
    --controls random,pca --joint site -o "$work/whole"
check "the results there are as before" cmp -s "$work/whole/eval.csv" "$work/merged/eval.csv"

mkdir -p "$work/bad"
fails 1 'no eval-I-of-N.json' --merge "$work/bad" -o "$o"
cp "$work/parts/eval-1-of-3.json" "$work/parts/eval-2-of-3.json" "$work/bad"
fails 1 'one of 3 slices; there are 2' --merge "$work/bad" -o "$o"
sed 's/"settings":"..../"settings":"0000/' "$work/parts/eval-3-of-3.json" > "$work/bad/eval-3-of-3.json"
fails 1 'slices 1 and 3 are of different settings' --merge "$work/bad" -o "$o"
cp "$work/parts/eval-2-of-3.json" "$work/bad/eval-3-of-3.json"
fails 1 'slice 2 is there twice' --merge "$work/bad" -o "$o"
echo '{' > "$work/bad/eval-3-of-3.json"
fails 1 'eval-3-of-3.json: byte' --merge "$work/bad" -o "$o"
echo '{}' > "$work/bad/eval-3-of-3.json"
fails 1 'is not the result of qsae eval' --merge "$work/bad" -o "$o"
check "nothing was written" test ! -e "$o/eval.json"

# A saved state that is not what was written, or not of these settings.
mkdir -p "$work/state"
head -c 5000 "$suite" > "$work/state/eval.state"
evaluate "$work/state" && bad "a damaged state was taken" || check "a damaged state" grep -q 'eval.state is damaged' "$work/err"

finish
