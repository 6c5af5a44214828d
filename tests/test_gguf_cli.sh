#!/bin/sh
# qsae convert with a GGUF file: the command around what test_gguf tests.

. tests/lib.sh
begin test_gguf_cli

file=tests/fixtures/qwen3.gguf
out=$work/out.qsae

# fails CODE PATTERN ARGUMENTS...: nothing is written
fails() {
    code=$1
    pattern=$2
    shift 2
    rm -f "$out"
    $QSAE convert -o "$out" "$@" > "$work/out" 2> "$work/err"
    is=$?
    if [ $is -eq "$code" ] && [ ! -e "$out" ] && grep -q -e "^qsae: .*$pattern" "$work/err"; then
        ok
    else
        bad "exit code $is, '$(head -n 2 "$work/err")' instead of $pattern: $*"
    fi
}

$QSAE convert $file -o "$out" > "$work/out" 2>&1
check "converts" grep -q '^.*out.qsae: model, 1 layers x 32, vocabulary 264, f32 and bf16 weights, tied head, with tokenizer$' "$work/out"
$QSAE info "$out" > "$work/info" 2>&1
check "is named as the file" grep -q 'model "qwen3"' "$work/info"
check "says where it is from" grep -q 'source=GGUF file, architecture qwen3' "$work/info"
check "says what it was" grep -q 'source.tensors=1 F16, 2 BF16, 6 F32, 2 Q8_0, 2 Q4_0' "$work/info"
printf 'hello' | $QSAE tokenize "$out" > "$work/out" 2>&1
check "its tokenizer" grep -q '^\[258, *111\]$' "$work/out"
$QSAE generate "$out" --tokens 104,105 -n 4 > "$work/out" 2>&1
check "generates" test $? -eq 0
cp $file "$work/any.name"
$QSAE convert "$work/any.name" -o "$work/other.qsae" --name qwen3 > "$work/log" 2>&1
check "told by content, not by name" cmp -s "$out" "$work/other.qsae"
$QSAE convert $file -o "$work/f32.qsae" --type f32 --no-tokenizer > "$work/log" 2>&1
check "--type f32 --no-tokenizer" grep -q 'f32 weights, tied head, no tokenizer' "$work/log"

fails 1 'a model goes into a file of its own' $file $file
fails 1 'a model goes into a file of its own' examples/toy/sae $file
fails 1 'is a model; --site' $file --layer 1
fails 1 'is a model; .*--check' $file --check "$BUILD/toy.qsae"
fails 1 'head stored: the checkpoint has no output.weight' $file --head stored
head -c 1000 $file > "$work/short.gguf"
fails 1 'short.gguf: metadata .* do not fit in the file' "$work/short.gguf"
printf 'GGML' > "$work/other.gguf"
fails 1 'not a folder' "$work/other.gguf"
fails 1 'No such file' "$work/none.gguf"

finish
