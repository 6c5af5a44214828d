#!/bin/sh
# Runs the libFuzzer targets given as arguments, FUZZ_SECONDS each; `make fuzz` builds them.
# Seeds come from tests/corpus/NAME, and what earlier campaigns found from tests/corpus/NAME.tar.gz
# (made by fuzz_corpus.sh); finds are kept in the build folder.

. tests/lib.sh
begin fuzz

FUZZ_SECONDS=${FUZZ_SECONDS:-60}
for target in "$@"; do
    name=$(basename "$target")
    mkdir -p "$work/$name"
    seeds=tests/corpus/${name#fuzz_}
    [ ! -f "$seeds.tar.gz" ] || tar -xzf "$seeds.tar.gz" -C "$work/$name" --strip-components=1
    [ -d "$seeds" ] || seeds=
    # A limit on the input's size and on memory; a slow input is a find as well.
    if "$target" -max_total_time="$FUZZ_SECONDS" -max_len=16384 -timeout=120 -rss_limit_mb=2048 \
        -artifact_prefix="$work/$name-" "$work/$name" $seeds > "$work/$name.log" 2>&1; then
        ok
        tail -n 1 "$work/$name.log" | sed "s/^/$name: /"
    else
        bad "$name; see $work/$name.log"
        grep -E 'ERROR|SUMMARY|runtime error' "$work/$name.log" | head -n 5 >&2
    fi
done
finish
