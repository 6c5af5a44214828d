#!/bin/sh
# `qsae train`, `harvest` and `merge` on the toy: slices, files and a harvest give the bytes
# of one run; what does not work is said, and the last good checkpoint stays.

. tests/lib.sh
begin test_train

model=$BUILD/toy.qsae
text=examples/toy/corpus/valid.jsonl

# fails CODE PATTERN COMMAND...: that exit code, and one line on stderr that has the pattern
fails() {
    code=$1
    pattern=$2
    shift 2
    "$@" > "$work/out" 2> "$work/err"
    is=$?
    if [ $is -eq "$code" ] && [ "$(wc -l < "$work/err")" -eq 1 ] &&
        grep -q -E -e "^qsae: .*$pattern" "$work/err"; then
        ok
    else
        bad "exit code $is, '$(head -n 2 "$work/err")' instead of $pattern: $*"
    fi
}

works() {
    if "$@" > "$work/out" 2> "$work/err" && [ ! -s "$work/err" ]; then
        ok
    else
        bad "failed: $* ($(head -n 1 "$work/err"))"
    fi
}

# The settings of most runs here.
settings='--layers 0,2 --width 64 --batch 100 --tokens 3000 --buffer 1000 --log-every 10'
sites='--sites resid_post,mlp_out --pairs mlp_input:mlp_out --l0 4,8'
corpus="--data $text --context 64"
train() { $QSAE train "$model" $corpus $sites $settings "$@"; }

# ---- the same bytes, however they are made
works train -o "$work/one"
$QSAE info "$work/one/suite.qsae" > "$work/info"
check "12 members" grep -q '12 SAEs' "$work/info"
check "a line for each SAE and ten steps" [ "$(wc -l < "$work/one/log.jsonl")" -eq 36 ]
check "no checkpoint is left" [ ! -e "$work/one/checkpoint" ]
works train --only 2/2 -o "$work/slices"
works train --only 1/2 -o "$work/slices" --threads 2 --no-screen
works $QSAE merge "$work/slices/suite.qsae" "$work/slices/suite-2-of-2.qsae" "$work/slices/suite-1-of-2.qsae"
check "slices" cmp "$work/one/suite.qsae" "$work/slices/suite.qsae"
works train --buffer-file "$work/buffer" -o "$work/file"
check "the buffer in a file" cmp "$work/one/suite.qsae" "$work/file/suite.qsae"
check "the buffer's file is gone" [ ! -e "$work/buffer" ]
works $QSAE harvest "$model" $corpus --tokens 3000 --sites resid_post,mlp_out,mlp_input --layers 0,2 \
    --shard-rows 700 -o "$work/harvest"
works $QSAE train --from "$work/harvest" $sites $settings -o "$work/from"
check "from a harvest" cmp "$work/one/suite.qsae" "$work/from/suite.qsae"
works $QSAE train --from "$work/harvest" $sites $settings --only 12/12 -o "$work/single"
check "one SAE of a harvest" grep -q '^resid_post.2.l0_8:' "$work/out"
works train --resume -o "$work/one"
check "nothing is left to do" grep -q 'nothing is left' "$work/out"

# ---- a harvest is resumed by shard, and is the same
mkdir "$work/half"
cp "$work/harvest/shard-00000.safetensors" "$work/harvest/shard-00001.safetensors" "$work/half/"
harvest() {
    $QSAE harvest "$model" $corpus --tokens 3000 --sites resid_post,mlp_out,mlp_input --layers 0,2 "$@"
}
fails 1 'exists: --resume' harvest --shard-rows 700 -o "$work/half"
works harvest --shard-rows 700 --resume -o "$work/half"
check "harvest: all shards again" diff -r "$work/harvest" "$work/half"
fails 1 'a shard of a harvest with other settings' harvest --shard-rows 800 --resume -o "$work/half"
fails 1 'no finished harvest' $QSAE train --from "$work/one" $sites $settings -o "$work/none"
fails 1 'has no rows of attn_out.0' $QSAE train --from "$work/harvest" --sites attn_out --l0 4 $settings -o "$work/none"
fails 1 'a harvest reads it once' $QSAE harvest "$model" $corpus --tokens 9000000 --sites resid_post \
    --layers 0 -o "$work/none"
rm -rf "$work/none"
works $QSAE harvest "$model" $corpus --tokens 500 --type bf16 --sites resid_post --layers 1 -o "$work/bf16"
works $QSAE train --from "$work/bf16" --sites resid_post --layers all --width 32 --l0 4 --batch 50 -o "$work/bf16-sae"

# ---- every kind of SAE; SAELens folders that convert back
for arch in topk batchtopk matryoshka; do
    works $QSAE train "$model" $corpus --sites resid_post --layers 1 --width 64 --l0 6 --batch 100 \
        --tokens 1000 --arch $arch --threads 1 --export -o "$work/$arch"
    works $QSAE convert "$work/$arch/saelens/resid_post.1" -o "$work/back.qsae"
done
works $QSAE features "$model" "$work/topk/suite.qsae" --text 'Tell me'
for s in step quadratic tanh; do
    l0='--l0-coefficient 0.1'
    [ $s = quadratic ] && l0='--l0 6'
    works $QSAE train "$model" $corpus --sites resid_post --layers 1 --width 64 $l0 --batch 100 \
        --tokens 500 --sparsity $s --threads 1 -o "$work/$s"
done

# ---- the norm filter, in the buffer, in the scale and in the count
works $QSAE train "$model" $corpus --sites resid_post --layers 1 --width 64 --l0 6 --batch 100 --tokens 1000 \
    --norm-ratio 1.1 -o "$work/filter"
check "rows are left out" grep -q -E '10 steps of 100 rows.* [1-9][0-9]* rows left out' "$work/out"
head -n 30 "$text" > "$work/few.jsonl"
works $QSAE train "$model" --data "$work/few.jsonl" --context 64 --sites resid_post --layers 1 --width 64 --l0 6 \
    --batch 100 --tokens 3000 --exclude template,user -o "$work/again"
check "the text is read again" grep -q 'the text ended [1-9]' "$work/out"
fails 1 'no token of the whole text has a row' $QSAE train "$model" $corpus --sites resid_post --layers 1 \
    --width 64 --l0 6 --batch 100 --tokens 1000 --skip-first 64 -o "$work/empty"

# ---- the plan
works train --plan -o "$work/planned"
for word in suite memory disk rate time; do
    check "plan: $word" grep -q "^$word " "$work/out"
done
check "a plan makes nothing" [ ! -e "$work/planned" ]

# ---- checkpoints
fails 1 'has a finished suite' train -o "$work/one"
works train --keep-checkpoint --force -o "$work/one"
check "a checkpoint is kept" [ -s "$work/one/checkpoint/state" ]
fails 1 'a run that was not finished' train -o "$work/one"
works train --resume --keep-checkpoint -o "$work/one"
check "resumed at the end" cmp "$work/one/suite.qsae" "$work/slices/suite.qsae"
fails 1 'from other settings: train.lr=.* there, train.lr=.* now' train --lr 0.5 --resume -o "$work/one"
fails 1 'from other settings: train.text=' $QSAE train "$model" --data examples/toy/corpus/test.jsonl \
    --context 64 $sites $settings --resume -o "$work/one"
state=$work/one/checkpoint/state
cp "$state" "$work/state"
printf x | dd of="$state" bs=1 seek=5000 conv=notrunc 2> /dev/null
fails 1 'checksum' train --resume -o "$work/one"
head -c 5000 "$work/state" > "$state"
fails 1 'checksum' train --resume -o "$work/one"
: > "$state"
fails 1 'not a checkpoint' train --resume -o "$work/one"

# ---- disk full: the checkpoint before it is intact, and the run goes on from there
small='--layers 0,2 --width 64 --batch 100 --tokens 1000 --buffer 100'
full() { # BLOCKS of 512 bytes
    (ulimit -f "$1" && $QSAE train "$model" $corpus $sites $small --checkpoint-every 0.0000001 --resume -o "$work/disk")
}
fails 1 'checkpoint: .*cannot write.*the one before it is intact' full 2500
check "a checkpoint is there" [ -s "$work/disk/checkpoint/state" ]
works $QSAE train "$model" $corpus $sites $small --resume -o "$work/disk"
works $QSAE train "$model" $corpus $sites $small -o "$work/roomy"
check "after a full disk" cmp "$work/disk/suite.qsae" "$work/roomy/suite.qsae"

# ---- what cannot be done
printf 'Hello there, how are you?' > "$work/short.txt"
fails 1 'has [0-9]+ tokens, less than one context of 64' $QSAE train "$model" --data "$work/short.txt" \
    --context 64 $sites $settings -o "$work/none"
printf 'good \377\376 bad' > "$work/bad.txt"
fails 1 'bad.txt' $QSAE train "$model" --data "$work/bad.txt" --context 4 $sites $settings -o "$work/none"
fails 1 'nothing.txt' $QSAE train "$model" --data "$work/nothing.txt" $sites $settings -o "$work/none"
fails 1 'SAEs of width 16777216 need .* GB of memory.* are available' $QSAE train "$model" $corpus \
    --sites resid_post,mlp_out --layers all --width 16777216 --l0 4,8,16,32 -o "$work/none"
fails 1 '50 rows are less than one batch of 100' $QSAE train "$model" $corpus --sites resid_post --layers 0 \
    --width 8 --l0 2 --batch 100 --tokens 50 -o "$work/none"
fails 1 'the model has 2048 positions' $QSAE train "$model" --data "$text" --context 4096 $sites $settings -o "$work/none"
fails 1 'layer 4; there are 0..3' $QSAE train "$model" $corpus --sites resid_post --layers 4 --width 8 --l0 2 -o "$work/none"
fails 1 'has room for .* rows of 768 numbers, one context has 64' $QSAE train "$model" $corpus $sites --layers 0,2 \
    --width 8 --buffer-file "$work/b" --buffer-size 300000 -o "$work/none"
check "nothing was made" [ ! -e "$work/none" ]
# The embedding overwritten by NaNs, which only the checksums would tell.
cp "$model" "$work/nan.qsae"
head -c 100000 /dev/zero | tr '\0' '\377' > "$work/ones"
dd if="$work/ones" of="$work/nan.qsae" bs=1000 seek=100 conv=notrunc 2> /dev/null
fails 1 'NaN or infinity in [a-z_.0-9]*, at token [0-9]* .id [0-9]*. of sequence' $QSAE train "$work/nan.qsae" \
    --no-verify $corpus $sites $settings -o "$work/nan"
fails 1 'NaN or infinity' $QSAE harvest "$work/nan.qsae" --no-verify $corpus --sites mlp_out --layers 0 -o "$work/nan-h"
fails 1 'checksum' $QSAE train "$work/nan.qsae" $corpus $sites $settings -o "$work/nan2"

# ---- merge
fails 1 'both have an SAE called' $QSAE merge "$work/m.qsae" "$work/one/suite.qsae" "$work/slices/suite-1-of-2.qsae"
fails 1 'one of the inputs' $QSAE merge "$work/slices/suite-1-of-2.qsae" "$work/slices/suite-1-of-2.qsae"
echo text > "$work/m.txt"
fails 1 'm.txt exists and is not' $QSAE merge "$work/m.txt" "$work/one/suite.qsae"
fails 2 'merge needs' $QSAE merge "$work/m.qsae"
works $QSAE merge "$work/m.qsae" "$work/one/suite.qsae"
check "one file merged is itself" cmp "$work/m.qsae" "$work/one/suite.qsae"

# ---- wrong usage
bad_usage() { # PATTERN ARGUMENTS...
    pattern=$1
    shift
    fails 2 "$pattern" $QSAE train "$model" $corpus --width 64 --batch 100 -o "$work/none" "$@"
}
bad_usage 'needs --sites' --layers 0 --l0 4
bad_usage 'needs --l0' --sites mlp_out --layers 0
bad_usage 'takes --l0-coefficient' --sites mlp_out --layers 0 --l0 4 --sparsity step
bad_usage 'more than --width 64' --sites mlp_out --layers 0 --l0 65
bad_usage 'a whole number' --sites mlp_out --layers 0 --l0 4.5 --arch topk
bad_usage 'asked for twice' --sites mlp_out,mlp_out --layers 0 --l0 4
bad_usage 'is there twice' --sites mlp_out --layers 0 --l0 4,4
bad_usage 'no list of sites' --sites mlp_out, --layers 0 --l0 4
bad_usage 'no list of pairs' --pairs mlp_out --layers 0 --l0 4
bad_usage 'is an SAE' --pairs mlp_out:mlp_out --layers 0 --l0 4
bad_usage 'is no list such as' --sites mlp_out --layers 2-1 --l0 4
bad_usage 'there are 1 layers' --sites mlp_out --layers 0 --l0 4 --only 1/2
bad_usage 'is not in 1..2' --sites mlp_out --layers 0,1 --l0 4 --only 3/2
bad_usage 'does not come after' --sites mlp_out --layers 0 --l0 4 --arch matryoshka --prefixes 8,8,64
bad_usage 'the last is 8' --sites mlp_out --layers 0 --l0 4 --arch matryoshka --prefixes 8
bad_usage 'belongs to --arch' --sites mlp_out --layers 0 --l0 4 --prefixes 8,64
bad_usage 'goes with --buffer-file' --sites mlp_out --layers 0 --l0 4 --buffer-size 1000
finish
