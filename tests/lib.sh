# Shared by the shell tests: sourced, not run. Needs BUILD; RUN and CC have defaults.
#
#     begin NAME ... ok WHAT / bad WHAT ... finish     prints "NAME: N passed, N failed"

export LC_ALL=C
BUILD=${BUILD:-build}
RUN=${RUN:-}
CC=${CC:-cc}
QSAE="$RUN $BUILD/qsae" # used unquoted: RUN may hold several words
passed=0
failed=0
skipped=0

begin() {
    test_name=$1
    work=$BUILD/tmp/$test_name
    rm -rf "$work"
    mkdir -p "$work"
}

ok() { passed=$((passed + 1)); }

bad() {
    failed=$((failed + 1))
    [ "$failed" -gt 40 ] || echo "$test_name: failed: $*" >&2
}

skip() {
    skipped=$((skipped + 1))
    echo "$test_name: skipped: $*" >&2
}

# check WHAT COMMAND...: the command must succeed
check() {
    what=$1
    shift
    if "$@"; then ok; else bad "$what"; fi
}

finish() {
    [ $((passed + failed)) -gt 0 ] || failed=1
    echo "$test_name: $passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
