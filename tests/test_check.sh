#!/bin/sh
# qsae convert --check: what the toy model says about its SAE, loaded right and wrong.

. tests/lib.sh
begin test_check

model=$BUILD/toy.qsae
sae=examples/toy/sae
out=$work/sae.qsae
sed -n 's/.*"user", "content": "\([^"]*\)".*"assistant", "content": "\([^"]*\)".*/<|im_start|>user\n\1<|im_end|>\n<|im_start|>assistant\n\2<|im_end|>/p' \
    examples/toy/corpus/test.jsonl | head -n 60 > "$work/text"

# says PATTERN ARGUMENTS...: the conversion succeeds and its output has the pattern
says() {
    pattern=$1
    shift
    rm -f "$out"
    if $QSAE convert $sae -o "$out" "$@" > "$work/out" 2> "$work/err" && [ ! -s "$work/err" ] &&
        [ -s "$out" ] && grep -q "$pattern" "$work/out"; then
        ok
    else
        bad "no '$pattern' with $*: $(tail -n 3 "$work/out") $(head -n 1 "$work/err")"
    fi
}

# fails CODE PATTERN ARGUMENTS...: before anything is written
fails() {
    code=$1
    pattern=$2
    shift 2
    rm -f "$out"
    $QSAE convert "$@" -o "$out" > "$work/out" 2> "$work/err"
    is=$?
    if [ $is -eq "$code" ] && [ ! -e "$out" ] && [ "$(wc -l < "$work/err")" -eq 1 ] &&
        grep -q -e "^qsae: .*$pattern" "$work/err"; then
        ok
    else
        bad "exit code $is, '$(head -n 2 "$work/err")' instead of $pattern: $*"
    fi
}

says '^  EV 0\.[6-9][0-9]*: it explains' --check "$model"
says '^  EV 0\.9[0-9]*: it explains' --check "$model" --check-text "$work/text"
says '^check: [0-9]* tokens of .*text through' --check "$model" --check-text "$work/text"
says '^  without sinks *[0-9]* *1[0-9]\.[0-9] *0\.9[0-9]* *0\.0[0-9]* *0\.9[0-9]*' \
    --check "$model" --check-text "$work/text"
says '^  all *[0-9]* ' --check "$model"
says 'of 1024 features fired' --check "$model"
says 'warning: EV .*wrong load (site, layer, orientation or normalisation?)' --check "$model" --site mlp_out
says 'warning: EV -.*wrong load' --check "$model" --site attn_out
says 'warning: EV -.*wrong load' --check "$model" --layer 3
says '^resid_pre 0 "sae"$' --check "$model" --site resid_pre --layer 0

# a near miss explains much, and another place more
says 'warning: resid_post of layer 2 fits better: EV 0\.[6-9].*--site resid_post --layer 2?$' --check "$model" --layer 1
says 'warning: resid_post of layer 2 fits better' --check "$model" --check-text "$work/text" --site resid_mid
says 'warning: resid_post of layer 2 fits better' --check "$model" --check-text "$work/text" --layer 3
says 'warning: resid_post of layer 2 fits better' --check "$model" --check-text "$work/text" --site attn_out --layer 0
$QSAE convert $sae -o "$out" --check "$model" > "$work/out" 2>&1
check "no warning where it is right" test "$(grep -c warning "$work/out")" -eq 0

# the same bits whatever the threads: two runs print the same
$QSAE convert $sae -o "$out" --check "$model" > "$work/a" 2>&1
$QSAE convert $sae -o "$out" --check "$model" > "$work/b" 2>&1
check "two runs agree" cmp -s "$work/a" "$work/b"

# a suite: every member
mkdir -p "$work/one" "$work/two"
cp $sae/sae_weights.safetensors "$work/one"
cp $sae/sae_weights.safetensors "$work/two"
cp $sae/cfg.json "$work/one"
sed 's/blocks\.2\.hook_resid_post/blocks.2.hook_mlp_out/' $sae/cfg.json > "$work/two/cfg.json"
$QSAE convert "$work/one" "$work/two" -o "$work/suite.qsae" --check "$model" > "$work/out" 2>&1
check "a suite" test "$(grep -c '^  without sinks' "$work/out")" -eq 2
check "one of them wrong" test "$(grep -c 'wrong load' "$work/out")" -eq 1

fails 1 'reads layer 9, the model has layers 0..3' $sae --check "$model" --layer 9
fails 1 'cannot open\|No such file' $sae --check "$work/none.qsae"
fails 1 'check-text: .*No such file' $sae --check "$model" --check-text "$work/none"
fails 2 'needs --check MODEL' $sae --check-text "$work/text"
fails 1 'are for SAEs' examples/toy/model --check "$model"
printf 'x' > "$work/short"
fails 1 'tokens are too few' $sae --check "$model" --check-text "$work/short"
cp "$BUILD/toy-sae.qsae" "$work/not-a-model.qsae"
fails 1 'not-a-model' $sae --check "$work/not-a-model.qsae"
$QSAE convert examples/toy/model --no-tokenizer -o "$work/mute.qsae" > "$work/out" 2>&1
fails 1 'has no tokenizer' $sae --check "$work/mute.qsae"

# another width
sed 's/"d_in": 128/"d_in": 160/' $sae/cfg.json > "$work/two/cfg.json"
fails 1 'd_in' "$work/two" --check "$model"
sed 's/blocks\.2\.hook_resid_post/blocks.2.attn.hook_z/; s/"reshape_activations": "none"/"reshape_activations": "hook_z"/' \
    $sae/cfg.json > "$work/two/cfg.json"
fails 1 'reads rows of 128 (attn_z of layer 2), those of the model have 160' "$work/two" --check "$model"

finish
