#!/bin/sh
# What qsae.c looks like to a linker, compiled as a user would: exports only qsae_*, imports
# only what is listed here, and no mutable data.

. tests/lib.sh
begin symbols

# libc without output, environment, exit or process state; libm; getauxval, which says what an
# ARM processor has. What the compiler itself may ask for (memory functions, stack protector,
# position-independent code) comes last.
allowed='
malloc free aligned_alloc posix_memalign
open close read fstat mmap munmap madvise sysconf pread
fopen fclose fread fseek fseeko ftell ftello fileno
strlen strcmp strncmp memchr snprintf vsnprintf strerror __errno_location qsort
sqrt sqrtf exp expf log logf sin cos sinf cosf pow powf tanh tanhf fma fmaf
floor floorf ceil ceilf rint rintf nearbyintf ldexp ldexpf frexp
memcpy memmove memset memcmp bcmp __memcpy_chk __memset_chk __memmove_chk
__snprintf_chk __vsnprintf_chk __stack_chk_fail _GLOBAL_OFFSET_TABLE_
getauxval
open64 fstat64 mmap64 fopen64 fseeko64 ftello64 pread64
'

object=$work/qsae.o
check "cc -O2 -c qsae.c" $CC -O2 -c qsae.c -o "$object"
nm=$($CC -print-prog-name=nm 2> /dev/null || echo nm)
size=$($CC -print-prog-name=size 2> /dev/null || echo size)
command -v "$nm" > /dev/null || nm=nm
command -v "$size" > /dev/null || size=size

"$nm" -g --defined-only "$object" | awk '{ print $NF }' > "$work/exports"
check "there are exports" test -s "$work/exports"
for s in $(grep -v '^qsae_' "$work/exports"); do
    bad "exports $s"
done
ok

# Every function of the header is there, and nothing that it does not declare.
sed -n 's/^QSAE_API.*[ *]\(qsae_[a-z0-9_]*\)(.*/\1/p' qsae.h | sort > "$work/declared"
sort "$work/exports" > "$work/exported"
for s in $(comm -23 "$work/declared" "$work/exported"); do
    bad "$s is declared in qsae.h, but not defined"
done
for s in $(comm -13 "$work/declared" "$work/exported"); do
    bad "$s is exported, but not declared in qsae.h"
done
ok

for s in $("$nm" -u "$object" | awk '{ print $NF }'); do
    case " $(echo $allowed) " in
    *" $s "*) ok ;;
    *) bad "imports $s" ;;
    esac
done

# .data.rel.ro is constant after loading: tables of pointers.
"$size" -A "$object" > "$work/sections"
for section in .data .bss .tdata .tbss .data.rel .data.rel.local; do
    bytes=$(awk -v s="$section" '$1 == s { print $2 }' "$work/sections")
    check "$section has ${bytes:-0} bytes" test "${bytes:-0}" -eq 0
done
finish
