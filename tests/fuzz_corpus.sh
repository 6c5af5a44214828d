#!/bin/sh
# Packs what a fuzzing campaign found: of the folders NAME in FROM and the corpus there is, the
# fewest inputs that reach the same branches, as tests/corpus/NAME.tar.gz. Needs the fuzz targets
# (`make fuzz`), built from what is there now. The archive depends on its files alone.
#
#     tests/fuzz_corpus.sh FROM NAME...

set -eu
from=$1
shift
work=${BUILD:-build}/tmp/fuzz-corpus
for name in "$@"; do
    rm -rf "$work" && mkdir -p "$work/$name" "$work/old"
    if [ -f "tests/corpus/$name.tar.gz" ]; then
        tar -xzf "tests/corpus/$name.tar.gz" -C "$work/old"
    fi
    "${BUILD:-build}/fuzz/fuzz_$name" -merge=1 -max_len=16384 -rss_limit_mb=2048 "$work/$name" \
        "tests/corpus/$name" "$from/$name" "$work/old" > "$work/log" 2>&1
    # The seeds lie beside the archive as files.
    for seed in "tests/corpus/$name"/*; do
        rm -f "$work/$name/$(sha1sum < "$seed" | cut -d ' ' -f 1)"
    done
    tar -C "$work" --sort=name --owner=0 --group=0 --numeric-owner --mode=644 \
        --mtime=@0 -cf - "$name" | gzip -n9 > "$work/$name.tar.gz"
    mv "$work/$name.tar.gz" "tests/corpus/$name.tar.gz"
    echo "$name: $(ls "$work/$name" | wc -l) inputs, $(wc -c < "tests/corpus/$name.tar.gz") bytes"
done
rm -rf "$work"
