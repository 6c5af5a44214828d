#!/bin/sh
# The comparison with references that we did not write. Needs Python with torch, transformers, tokenizers,
# safetensors, sae-lens, gguf and numpy:    PYTHON=path/to/python tests/reference/run.sh [--quick] [--qsae PATH]
# Writes only under build/. Ends with the line "N passed, N failed".
cd "$(dirname "$0")/../.." || exit 1
: "${PYTHON:=python3}"
export PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# Threads that wait asleep: on a busy machine spinning ones take most of the time. No bit depends on it.
export OMP_WAIT_POLICY=passive
log=build/reference/log
mkdir -p "$log" || exit 1
passed=0 failed=0
for part in format containers compare quant compare_sae families commands determinism edits tokenizer chat sampling gguf_file check eval; do
    echo "== $part"
    "$PYTHON" "tests/reference/$part.py" "$@" >"$log/$part.txt" 2>&1
    status=$?
    cat "$log/$part.txt"
    last=$(tail -n 1 "$log/$part.txt" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p')
    p=${last% *} f=${last#* }
    # a part that died without its last line, or that says one thing and returns another, has failed
    if [ -z "$last" ]; then p=0 f=1; echo "$part.py died with status $status"; fi
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
