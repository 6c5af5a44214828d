#!/bin/sh
# `qsae compare`: a file with itself gives exactly 0 and 1, another of its weights nearly so,
# and what is not the same model is refused.

. tests/lib.sh
begin test_compare

model=$BUILD/toy.qsae
sae=$BUILD/toy-sae.qsae
text=$work/text
head -c 1500 examples/toy/prompts/test_harmful.txt > "$text"

# fails CODE PATTERN ARGUMENTS...: that exit code and one line that has the pattern
fails() {
    code=$1
    pattern=$2
    shift 2
    $QSAE compare "$@" > "$work/out" 2> "$work/err"
    is=$?
    if [ $is -eq "$code" ] && [ ! -s "$work/out" ] && [ "$(wc -l < "$work/err")" -eq 1 ] &&
        grep -q -e "^qsae: .*$pattern" "$work/err"; then
        ok
    else
        bad "exit code $is, '$(head -n 2 "$work/err")' instead of $pattern: $*"
    fi
}

# works FILE ARGUMENTS...: exit code 0, nothing on stderr, stdout to the file
works() {
    to=$1
    shift
    if $QSAE compare "$@" > "$to" 2> "$work/err" && [ ! -s "$work/err" ]; then
        ok
    else
        bad "failed: $* ($(head -n 1 "$work/err"))"
    fi
}

number='[0-9]+(\.[0-9]+)?(e[-+][0-9]+)?'
file='\{"file":"[^"]*","type":"[a-z0-9]+"\}'
site="\{\"layer\":[0-9]+,\"site\":\"[a-z_]+\",\"rms\":$number,\"max\":$number\}"
member="\{\"name\":\"[^\"]*\",\"site\":\"[a-z_]+\",\"layer\":[0-9]+,\"active_a\":$number,\"active_b\":$number"
member="$member,\"same_set\":$number,\"jaccard\":$number,\"value_error\":$number\}"
whole="\{\"a\":$file,\"b\":$file,\"tokens\":[0-9]+,\"kl_mean\":$number,\"kl_max\":$number,\"top1\":$number"
whole="$whole,\"perplexity_a\":$number,\"perplexity_b\":$number,\"sites\":\[($site,){27}$site\],\"saes\":\[$member\]\}"

# exact FILE: the JSON in it is of two models that never differ
exact() {
    tr -d '\n' < "$1" > "$work/line"
    check "$1 is JSON" grep -Eqx -e "$whole" "$work/line"
    check "$1: KL is 0, top-1 is 1" grep -q '"kl_mean":0,"kl_max":0,"top1":1,' "$work/line"
    check "$1: every site is equal" test "$(grep -c '"rms":0,"max":0}' "$1")" -eq 28
    check "$1: so are the features" grep -q '"same_set":1,"jaccard":1,"value_error":0}' "$work/line"
    check "$1: some are active" grep -Eq '"active_a":[1-9]' "$work/line"
    ppl=$(sed -n 's/.*"perplexity_a":\([^,]*\),"perplexity_b":\([^,]*\),.*/\1 \2/p' "$work/line")
    check "$1: perplexity" test "${ppl% *}" = "${ppl#* }"
}

works "$work/help" --help
check "--help says how" grep -q '^Usage: qsae compare A.qsae B.qsae' "$work/help"
works "$work/same" "$model" "$model" --text "$text" --sae "$sae" --threads 1 --json
exact "$work/same"
# The toy's weights are bf16, so f32 holds the same numbers.
$QSAE convert examples/toy/model --type f32 -o "$work/f32.qsae" > "$work/out" 2>&1
check "converts as f32" test -s "$work/f32.qsae"
works "$work/wide" "$work/f32.qsae" "$model" --text "$text" --sae "$sae" --threads 1 --json
exact "$work/wide"
works "$work/table" "$model" "$work/f32.qsae" --text "$text" --threads 1 --tokens 70 --context 40
check "number of tokens" grep -q '^70 tokens, in parts of 40$' "$work/table"
check "KL" grep -q '^KL(A||B)     mean 0.000e+00  largest 0.000e+00$' "$work/table"
check "top-1" grep -q 'after 100.00 % of the tokens$' "$work/table"
check "a line for every layer" test "$(grep -Ec '^ +[0-3]( +[0-9.e+-]+){14} *$' "$work/table")" -eq 4
# Zeros in the last tensor, which is `down` of the last layer: everything before is equal.
cp "$model" "$work/changed.qsae"
size=$(wc -c < "$model")
dd if=/dev/zero of="$work/changed.qsae" bs=64 count=64 seek=$((size / 64 - 64)) conv=notrunc 2> "$work/err"
works "$work/other" "$model" "$work/changed.qsae" --text "$text" --sae "$sae" --threads 1 --json --no-verify
tr -d '\n' < "$work/other" > "$work/line"
check "changed weights: JSON" grep -Eqx -e "$whole" "$work/line"
check "KL is above 0" grep -Eq '"kl_mean":[0-9.e-]*[1-9][0-9.e-]*,"kl_max":[0-9.e-]*[1-9]' "$work/line"
check "equal sites" test "$(grep -c '"rms":0,"max":0}' "$work/other")" -eq 26
for site in mlp_out resid_post; do
    check "$site differs" grep -Eq "\"layer\":3,\"site\":\"$site\",\"rms\":[0-9.e-]*[1-9]" "$work/other"
done
check "features of layer 2 are equal" grep -q '"same_set":1,"jaccard":1,"value_error":0}' "$work/line"
fails 1 'checksum' "$model" "$work/changed.qsae" --text "$text" --threads 1
works "$work/random" "$model" "$model" --random 20 --threads 1
check "random tokens" grep -q '^20 tokens' "$work/random"
works "$work/one" "$model" "$model" --text "$text" --tokens 1 --threads 1 --json
check "one token has no next one" grep -q '"perplexity_a":null,"perplexity_b":null,' "$work/one"

fails 2 'needs A.qsae and B.qsae' "$model"
fails 2 'one of --text and --random' "$model" "$model"
fails 2 'only one of --text and --random' "$model" "$model" --text "$text" --random 3
fails 2 '--tokens needs --text' "$model" "$model" --tokens 5 --random 3
fails 2 'one argument too many' "$model" "$model" "$model" --random 3
fails 1 'missing' "$model" "$work/missing.qsae" --random 3
fails 1 'missing' "$model" "$model" --text "$work/missing"
tiny=tests/corpus/qsae
fails 1 'n_layers is 4 in .*toy.qsae, 1 in .*model_bf16.qsae' "$model" $tiny/model_bf16.qsae --random 3
fails 1 'd_model is 3 in .*, 2 in ' $tiny/model_f32.qsae $tiny/model_bf16.qsae --random 3
fails 1 'neither file has a tokenizer' $tiny/model_f32.qsae $tiny/model_f32.qsae --text "$text"
fails 1 'reads rows of 4' "$model" "$model" --random 3 --sae $tiny/relu.qsae
fails 1 'toy-sae.qsae' "$model" "$sae" --random 3
fails 1 'toy.qsae' "$model" "$model" --random 3 --sae "$model"
: > "$work/empty"
fails 1 'the text is empty' "$model" "$model" --text "$work/empty"

finish
