#!/bin/sh
# The ways in which a stranger compiles the two files.

. tests/lib.sh
begin test_build

strict='-Wall -Wextra -Werror -pedantic'
for dialect in -std=c99 -std=c11 "-std=c99 -DQSAE_WITH_FORMAT"; do
    check "qsae.h as $dialect" $CC $dialect $strict -c tests/header_c.c -o "$work/header.o"
done

# A program in several files, and one that includes qsae.c, with no flag but -lm.
check "two files and qsae.c" $CC tests/two_a.c tests/two_b.c qsae.c -o "$work/two" -lm
check "two files run" $RUN "$work/two"
check "qsae.c included" $CC -w tests/include_c.c -o "$work/include" -lm
check "qsae.c included runs" $RUN "$work/include"
nm=$($CC -print-prog-name=nm 2> /dev/null || echo nm)
command -v "$nm" > /dev/null || nm=nm
$CC -w -c tests/include_c.c -o "$work/include.o"
if "$nm" -g --defined-only "$work/include.o" | grep -q qsae_; then
    bad "QSAE_API=static leaves global names"
else
    ok
fi

# C++ compiles the header; bare machines have none.
cxx=${CXX:-}
if [ -z "$cxx" ]; then
    case $CC in
    *clang) cxx=${CC}++ ;;
    *gcc) cxx=${CC%gcc}g++ ;;
    *) cxx=c++ ;;
    esac
fi
if echo 'int main() {}' > "$work/a.cpp" && $cxx "$work/a.cpp" -o "$work/a" 2> /dev/null; then
    $CC -c qsae.c -o "$work/qsae.o"
    check "qsae.h is C++11" $cxx -std=c++11 $strict -c tests/header_cpp.cpp -o "$work/cpp.o"
    check "C++ links" $cxx "$work/cpp.o" "$work/qsae.o" -o "$work/cpp" -lm
    check "C++ runs" $RUN "$work/cpp"
else
    skip "C++: no working $cxx"
fi

# Every configuration macro alone and all together; strict dialects.
for macros in -DQSAE_NO_MMAP -DQSAE_NO_TOKENIZER -DQSAE_NO_AVX2 -DQSAE_NO_AVX512 \
    -DQSAE_NO_NEON -DQSAE_NO_OPENMP -DQSAE_NO_TRAINING "-DQSAE_NO_AVX2 -DQSAE_NO_AVX512 -DQSAE_NO_NEON" \
    "-DQSAE_NO_MMAP -DQSAE_NO_TOKENIZER -DQSAE_NO_TRAINING -DQSAE_NO_AVX2 -DQSAE_NO_AVX512 -DQSAE_NO_NEON"; do
    check "qsae.c with $macros" $CC -std=c99 -Wall -Wextra -Werror $macros -fsyntax-only qsae.c
done
for dialect in -std=c99 -std=c11 -std=gnu17; do
    check "qsae.c as $dialect" $CC $dialect -O2 -Wall -Wextra -Wshadow -Wconversion -Werror \
        -fsyntax-only qsae.c
done

# Fast math would break the promise of equal bits, so it must not compile.
for flag in -ffast-math -Ofast; do
    if $CC $flag -fsyntax-only qsae.c 2> /dev/null; then
        bad "qsae.c compiles with $flag"
    else
        ok
    fi
done
finish
