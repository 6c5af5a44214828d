#!/bin/sh
# Text for campaign_tokenizer.py: Debian packages with documentation, translations, dictionaries and sources, unpacked
# under build/campaign/deb. Needs apt-get; about 250 MB to fetch. What cannot be had is left out and named.
#
#     tests/reference/campaign_fetch.sh
cd "$(dirname "$0")/../.." || exit 1
mkdir -p build/campaign/deb build/campaign/fetch
text="unicode-cldr-core iso-codes installation-guide-amd64 manpages-ja manpages-de manpages-ru manpages-zh manpages-fr
manpages-pl debian-reference-zh-cn developers-reference-ja bible-kjv-text fortunes-zh fortunes-ru
hunspell-ar hunspell-hi hunspell-th hunspell-bo hunspell-gu hunspell-te hunspell-ml hunspell-bn hunspell-ne hunspell-si
hunspell-lo hunspell-ko hunspell-he hunspell-el hunspell-vi hunspell-sr hunspell-uz aspell-ta aspell-pa aspell-or aspell-am
aspell-hy aspell-mr aspell-fa"
# Go, Rust, Lisp dialects, Erlang, Ada, JavaScript, TypeScript, Pascal, Vim, Perl, D, R, Octave, Tcl, Scheme, Elixir, Maxima, OCaml, Forth,
# Ruby, Verilog, VHDL, Nim, Yorick, PHP, Crystal, Prolog
code="golang-1.19-src rust-src emacs-el erlang-src sbcl-source gnat-12 node-typescript fpc-source-3.2.2 vim-runtime perl-modules-5.36
libgphobos-12-dev libstdc++-12-dev r-base-core octave-common tcl8.6 libtcl8.6 guile-3.0-libs elixir maxima-src maxima-share ocaml gforth-common
libruby3.1 iverilog ghdl-common ghdl nim yorick-data php-symfony-process php-symfony-console crystal swi-prolog-nox lua-penlight cmake-data"
for p in $text $code; do
    [ -e "build/campaign/fetch/$p.done" ] && continue
    if (cd build/campaign/fetch && apt-get download "$p" > /dev/null 2>&1) &&
        dpkg -x build/campaign/fetch/"$p"_*.deb "build/campaign/deb/$p"; then
        : > "build/campaign/fetch/$p.done"
    else
        echo "left out: $p"
    fi
    rm -f build/campaign/fetch/"$p"_*.deb
done
find build/campaign/deb -type f | wc -l
