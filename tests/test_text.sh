#!/bin/sh
# tokenize, detokenize, chat-template, and files with a tokenizer alone, from outside.

. tests/lib.sh
begin test_text

model=$BUILD/toy.qsae
toy=examples/toy/model
only=$work/only.qsae

# gives WANTED INPUT ARGUMENTS...: the program prints exactly that for this standard input
gives() {
    printf "$1" > "$work/want"
    printf "$2" > "$work/in"
    shift 2
    if $QSAE "$@" < "$work/in" > "$work/out" 2> "$work/err" && [ ! -s "$work/err" ] &&
        cmp -s "$work/want" "$work/out"; then
        ok
    else
        bad "$*: '$(head -c 300 "$work/out")' $(head -n 1 "$work/err")"
    fi
}

# fails CODE PATTERN INPUT ARGUMENTS...: that exit code and one line that has the pattern
fails() {
    code=$1
    pattern=$2
    printf "$3" > "$work/in"
    shift 3
    $QSAE "$@" < "$work/in" > "$work/out" 2> "$work/err"
    is=$?
    if [ $is -eq "$code" ] && [ "$(wc -l < "$work/err")" -eq 1 ] && grep -q "^qsae: .*$pattern" "$work/err"; then
        ok
    else
        bad "exit code $is, '$(head -n 2 "$work/err")' instead of $pattern: $*"
    fi
}

# ------------------------------------------------------------- a file with a tokenizer alone

mkdir -p "$work/folder"
cp $toy/tokenizer.json "$work/folder"
$QSAE convert "$work/folder" -o "$only" > "$work/out" 2>&1
check "converts a folder with tokenizer.json alone" grep -q 'tokenizer of [0-9]* tokens, no weights' "$work/out"
$QSAE info "$only" > "$work/out" 2>&1
check "info says so" grep -q '^  no weights$' "$work/out"
check "no template: assumed" grep -q 'chat.template=none; qwen3 is assumed' "$work/out"
$QSAE info --json "$only" > "$work/out" 2>&1
check "info --json" grep -q '"n_layers":0,.*"weight_type":"none","chat_format":"qwen3"' "$work/out"
for c in "generate $only --tokens 1" "capture $only --tokens 1 --logits -o $work/x" \
    "features $only $BUILD/toy-sae.qsae --tokens 1"; do
    fails 1 'only a tokenizer, no weights' '' $c
done
fails 1 '--head, --no-tokenizer, --type' '' convert "$work/folder" -o "$work/x" --no-tokenizer
fails 1 'are for SAEs' '' convert "$work/folder" -o "$work/x" --layer 1
fails 1 'a file of its own' '' convert "$work/folder" "$work/folder" -o "$work/x"
touch "$work/folder/model.safetensors"
fails 1 'neither config.json' '' convert "$work/folder" -o "$work/x"
rm "$work/folder/model.safetensors"
cp $toy/tokenizer_config.json "$work/folder"
$QSAE convert "$work/folder" -o "$only" > /dev/null 2>&1
$QSAE info "$only" > "$work/out" 2>&1
check "Qwen3's template is known" grep -q 'chat.template=qwen3$' "$work/out"
cp "$only" "$work/first"
$QSAE convert "$work/folder" -o "$only" > /dev/null 2>&1
check "equal sources make equal files" cmp -s "$only" "$work/first"
echo '{{ messages }}' > "$work/folder/chat_template.jinja"
$QSAE convert "$work/folder" -o "$only" > "$work/out" 2>&1
check "another template: a note" grep -q '^note: the chat template is none of Qwen3' "$work/out"
fails 1 'convert it with --chat-template qwen3' '[{"role":"user","content":"x"}]' chat-template "$only"
gives '[39]\n' 'H' tokenize "$only"
$QSAE convert "$work/folder" -o "$only" --chat-template qwen3 > /dev/null 2>&1
gives '<|im_start|>user\nx<|im_end|>\n' '[{"role":"user","content":"x"}]' chat-template "$only" --no-generation-prompt
fails 2 "'chatml' is not qwen3" '' convert "$work/folder" -o "$work/x" --chat-template chatml
echo '{' > "$work/folder/tokenizer.json"
fails 1 'tokenizer.json: byte 2' '' convert "$work/folder" -o "$work/x"

# ------------------------------------------------------------------------------- tokenize

for m in "$model" "$only"; do
    gives '[]\n' '' tokenize "$m"
    $QSAE tokenize "$m" < tests/run.sh > "$work/ids"
    $QSAE detokenize "$m" < "$work/ids" > "$work/back"
    check "the text comes back, its final newline too" cmp -s tests/run.sh "$work/back"
    gives '' '[]' detokenize "$m"
done
printf '<|im_start|>' | $QSAE tokenize "$model" --special > "$work/ids"
check "one id with --special" grep -Eq '^\[[0-9]+\]$' "$work/ids"
gives '<|im_start|>' "$(cat "$work/ids")" detokenize "$model"
for t in '<think>' '<tool_call>' '<|im_end|>'; do
    printf '%s' "$t" | $QSAE tokenize "$model" > "$work/ids"
    check "$t is text without --special" grep -q , "$work/ids"
    gives "$t" "$(cat "$work/ids")" detokenize "$model"
done
printf 'a\377\344\275b' | $QSAE tokenize "$model" > "$work/ids"
gives 'a\357\277\275\357\277\275b' "$(cat "$work/ids")" detokenize "$model"
gives '[39]\n[]\n[198]\n' '"H"\n""\r\n "\\n" ' tokenize "$model" --jsonl
fails 1 'line 2 is not a JSON string' '"a"\n1\n' tokenize "$model" --jsonl
fails 1 'line 2: byte 0' '"a"\n\n"b"' tokenize "$model" --jsonl
fails 1 'line 1: .*surrogate' '"\\ud800"' tokenize "$model" --jsonl
fails 1 'not a JSON array' '5' detokenize "$model"
fails 1 'item 1 is not an integer' '[1, "a"]' detokenize "$model"
fails 1 'item 0: -1 is not a token' '[-1]' detokenize "$model"
fails 1 'item 2: 4294967297 is not a token' '[1,2,4294967297]' detokenize "$model"
fails 1 'standard input: byte' '[1' detokenize "$model"
for c in tokenize detokenize chat-template; do
    fails 2 'needs MODEL.qsae' '' $c
    fails 2 'unknown option --frobnicate' '' $c "$model" --frobnicate
    fails 2 'one argument too many' '' $c "$model" x
    fails 1 'nowhere' '' $c "$work/nowhere"
    $QSAE $c --help > "$work/out" 2>&1
    check "$c --help" grep -q "^Usage: qsae $c MODEL.qsae" "$work/out"
done
fails 2 'was given twice' '' tokenize "$model" --special --special

# -------------------------------------------------------------------------- chat-template

hi='[{"role":"user","content":"Hi <|im_end|>"}]'
head='<|im_start|>user\nHi <|im_end|><|im_end|>\n'
gives "$head"'<|im_start|>assistant\n' "$hi" chat-template "$model"
gives "$head"'<|im_start|>assistant\n<think>\n\n</think>\n\n' "$hi" chat-template "$model" --no-think
gives "$head" "$hi" chat-template "$model" --no-generation-prompt --no-think
gives "$head" "{\"messages\":$hi,\"tools\":[]}" chat-template "$model" --no-generation-prompt
fails 1 'there is no message' '[]' chat-template "$model"
fails 1 'a list of messages' '"x"' chat-template "$model"
fails 1 'message 0 (user) has no content' '[{"role":"user","content":null}]' chat-template "$model"
fails 1 'message 0 (user): its content is not a string' '[{"role":"user","content":[]}]' chat-template "$model"
fails 1 'message 0 is not an object' '["x"]' chat-template "$model"
fails 1 'a tool call has no arguments' '[{"role":"assistant","content":"","tool_calls":[{}]}]' chat-template "$model"
fails 1 'one of the tools is not an object' "{\"messages\":$hi,\"tools\":[1]}" chat-template "$model"
fails 1 '"stream" is not known' "{\"messages\":$hi,\"stream\":true}" chat-template "$model"
fails 1 'appears twice' '[{"role":"user","role":"user"}]' chat-template "$model"
fails 1 'standard input: byte' '[' chat-template "$model"

# ------------------------------------------------------------------------------- sampling

for preset in greedy thinking non-thinking; do
    $QSAE generate "$model" --chat 'Hi' --preset $preset -n 5 > "$work/out" 2>&1
    check "--preset $preset" test $? -eq 0
done
same() {
    $QSAE generate "$model" --chat 'How are you?' -n 20 $1 > "$work/a" 2>&1
    $QSAE generate "$model" --chat 'How are you?' -n 20 $2 > "$work/b" 2>&1
    check "$1 is $2" cmp -s "$work/a" "$work/b"
}
same '--preset thinking --seed 5' '--temp 0.6 --top-p 0.95 --top-k 20 --seed 5'
same '--temp 1.5 --preset non-thinking' '--temp 1.5 --top-p 0.8 --top-k 20'
same '--preset greedy' ''
same '--temp 1 --top-p 0' ''
same '--repetition-penalty 1 --presence-penalty 0' ''
fails 2 "'warm' is none of greedy thinking non-thinking" '' generate "$model" --prompt a --preset warm
fails 2 '--top-k needs --temp' '' generate "$model" --prompt a --preset greedy --top-k 3
fails 2 '--repetition-penalty: 0 is not in' '' generate "$model" --prompt a --repetition-penalty 0
$QSAE generate "$model" --chat 'How are you?' -n 30 > "$work/a" 2>&1
$QSAE generate "$model" --chat 'How are you?' -n 30 --presence-penalty 50 --repetition-penalty 2 > "$work/b" 2>&1
if cmp -s "$work/a" "$work/b"; then bad "penalties change nothing"; else ok; fi
finish
