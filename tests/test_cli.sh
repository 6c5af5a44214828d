#!/bin/sh
# The program from outside: options, errors, what it prints, what it leaves behind.

. tests/lib.sh
begin test_cli

model=$BUILD/toy.qsae
sae=$BUILD/toy-sae.qsae
out=$work/out.safetensors
text='How do I kill a process?'
tab=$(printf '\t')

# fails CODE PATTERN ARGUMENTS...: that exit code, nothing on stdout, and on stderr one line
# that starts with "qsae: " and matches the pattern.
fails() {
    code=$1
    pattern=$2
    shift 2
    rm -f "$out"
    $QSAE "$@" > "$work/stdout" 2> "$work/stderr"
    is=$?
    if [ $is -ne "$code" ]; then
        bad "exit code $is, not $code: $*"
    elif [ -s "$work/stdout" ]; then
        bad "wrote to stdout: $*"
    elif [ "$(wc -l < "$work/stderr")" -ne 1 ] || ! grep -q "^qsae: .*$pattern" "$work/stderr"; then
        bad "no line 'qsae: ...$pattern', but '$(head -n 3 "$work/stderr")': $*"
    elif [ -e "$out" ] || ls "$work"/*.tmp-* > /dev/null 2>&1; then
        bad "left an output file: $*"
    else
        ok
    fi
}

# works FILE ARGUMENTS...: exit code 0, nothing on stderr, stdout to FILE.
works() {
    to=$1
    shift
    if $QSAE "$@" > "$to" 2> "$work/stderr" && [ ! -s "$work/stderr" ]; then
        ok
    else
        bad "failed: $* ($(head -n 1 "$work/stderr"))"
    fi
}

same() { # WHAT FILE FILE
    check "$1" cmp -s "$2" "$3"
}

# ------------------------------------------------------------------------ every command

works "$work/a" --version
check "--version" grep -Eq '^qsae [0-9]+\.[0-9]+\.[0-9]+$' "$work/a"
works "$work/a" --help
fails 2 'no command'
fails 2 "unknown command 'frobnicate'" frobnicate
for c in capture features generate; do
    works "$work/a" $c --help
    check "$c --help says how" grep -q "^Usage: qsae $c MODEL.qsae" "$work/a"
    fails 2 'unknown option --frobnicate' $c --frobnicate
    fails 2 'unknown option -z' $c -z
    fails 2 'needs MODEL.qsae' $c
    fails 2 '--threads needs a value' $c "$model" --threads
    fails 2 '--special takes no value' $c "$model" --special=1
    fails 2 '--chunk was given twice' $c "$model" --chunk 1 --chunk 1
    fails 2 "--threads: 'two' is not a whole number" $c "$model" --threads two
    fails 2 "--threads: ' 2' is not a whole number" $c "$model" --threads ' 2'
    fails 2 '--threads: 0 is not in 1..1024' $c "$model" --threads 0
    fails 2 '--threads: 99999999999999999999 is not in' $c "$model" --threads 99999999999999999999
    fails 2 '--chunk: -1 is not in' $c "$model" --chunk=-1
    fails 2 "--isa: 'sse9' is none of" $c "$model" --isa sse9
    fails 2 "--kv: 'f8' is none of f32 f16 bf16" $c "$model" --kv f8
done
for c in convert info; do
    $QSAE $c --frobnicate > "$work/stdout" 2> "$work/stderr"
    check "$c --frobnicate is a usage error" test $? -eq 2
    check "$c says so in one line" test "$(grep -c '^qsae: ' "$work/stderr")" -eq 1
done
case $($QSAE generate "$model" --tokens 1 -n 0 --isa neon 2>&1) in
*'has no neon'*) fails 1 'has no neon' generate "$model" --tokens 1 --isa neon ;;
*) fails 1 'has no avx2' generate "$model" --tokens 1 --isa avx2 ;;
esac

# -------------------------------------------------------------------------------- input

fails 2 'give one of --text, --tokens and --chat' capture "$model" -o "$out"
fails 2 'give only one of' capture "$model" --text a --tokens 1 -o "$out"
fails 2 'give one of --prompt' generate "$model"
fails 2 '--special needs --prompt' generate "$model" --tokens 1 --special
fails 2 '--no-think needs --chat' generate "$model" --prompt a --no-think
fails 2 '--system needs --chat' features "$model" "$sae" --text a --system b
fails 2 "'x' is one argument too many" generate "$model" x --prompt a
fails 1 'the text is empty' capture "$model" --text '' -o "$out"
for list in '' ',' '1,' ',1' '1,,2' 'a' '1;2' '1 2' '0x1' '1,2,x'; do
    fails 2 '--tokens: ' capture "$model" --tokens "$list" -o "$out"
done
fails 2 '--tokens: -1 is not in' capture "$model" --tokens -1 -o "$out"
fails 2 '--tokens: 99999999 is not in' capture "$model" --tokens 1,99999999 -o "$out"
works "$work/a" generate "$model" --tokens "1, 2 ,${tab}3" -n 1
fails 1 'nowhere' generate "$work/nowhere.qsae" --prompt a
fails 1 '' generate "$work" --prompt a
fails 1 '' generate Makefile --prompt a
fails 1 '' generate "$sae" --prompt a
fails 1 '' features "$model" "$model" --text a
fails 1 '' features "$model" Makefile --text a

# ------------------------------------------------------------------------------ capture

fails 2 'needs -o' capture "$model" --text a
fails 2 'there is none' capture "$model" --text a --layer 0 --site resid_pre -o "$out"
fails 2 "'resid_prej' is none of" capture "$model" --text a --site resid_prej -o "$out"
fails 2 "'logits' is none of" capture "$model" --text a --site logits -o "$out"
fails 2 '--layer: -1 is not in' capture "$model" --text a --site mlp_out --layer -1 -o "$out"
fails 1 '--layer 99: the model has' capture "$model" --text a --site mlp_out --layer 99 -o "$out"
fails 1 '' capture "$model" --text a -o "$work/nowhere/out.safetensors"
fails 1 '' capture "$model" --text a -o "$work"

works "$work/a" capture "$model" --text "$text" --logits --site all -o "$work/all"
check "capture prints nothing" test ! -s "$work/a"
for site in resid_pre attn_z attn_out resid_mid mlp_input mlp_out resid_post; do
    check "all has layers.0.$site" grep -aq "\"layers.0.$site\"" "$work/all"
done
for name in logits tokens; do
    check "all has $name" grep -aq "\"$name\"" "$work/all"
done
works "$work/a" capture "$model" --text "$text" -o "$work/b"
if grep -aq '"logits"' "$work/b"; then bad "logits were not asked for"; else ok; fi
works "$work/a" capture "$model" --text "$text" --logits -o "$work/b"
if grep -aq '"layers.0' "$work/b"; then bad "sites were not asked for"; else ok; fi
works "$work/a" capture "$model" --text "$text" --site mlp_out --layer 1 --layer 0 \
    --site resid_mid -o "$work/b"
check "--layer of the site before it" grep -aq '"layers.1.mlp_out"' "$work/b"
check "--site without --layer: all" grep -aq '"layers.2.resid_mid"' "$work/b"
if grep -aq '"layers.2.mlp_out"' "$work/b"; then bad "layer 2 was not asked for"; else ok; fi
works "$work/a" capture "$model" --text "$text" --site mlp_out --layer 0 --site resid_mid \
    --layer all --site mlp_out --layer 0 --layer 1 -o "$work/c"
same "what is asked for twice is there once" "$work/b" "$work/c"
for how in '--chunk 1' '--chunk 3' '--chunk all' '--threads 2' '--threads 3' '--isa scalar' \
    '--no-verify'; do
    works "$work/a" capture "$model" --text "$text" --logits --site all $how -o "$work/b"
    same "the same bits with $how" "$work/all" "$work/b"
done
for kv in f16 bf16; do
    works "$work/a" capture "$model" --text "$text" --logits --site all --kv $kv -o "$work/b"
    works "$work/a" capture "$model" --text "$text" --logits --site all --kv $kv --chunk 3 \
        --threads 2 -o "$work/c"
    same "the same bits with --kv $kv, however" "$work/b" "$work/c"
    check "--kv $kv rounds" test "$(cmp "$work/all" "$work/b" 2>&1)"
done
for isa in avx2 avx512 neon; do
    if $QSAE capture "$model" --text "$text" --logits --site all --isa $isa -o "$work/b" \
        2> "$work/stderr"; then
        same "the same bits with --isa $isa" "$work/all" "$work/b"
    else
        check "--isa $isa: a clear error" grep -q "^qsae: --isa: .* no $isa" "$work/stderr"
    fi
done

# ----------------------------------------------------------------------------- features

json_string='"([^"\\[:cntrl:]]|\\["\\]|\\u[0-9a-f]{4})*"'
number='[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?'
entry="\\[[0-9]+,$number\\]"
json="^\\{\"pos\":[0-9]+,\"token\":[0-9]+,\"text\":$json_string,\"features\":\\[($entry(,$entry)*)?\\],\"norm\":$number,\"sink\":(true|false)\\}\$"

# json_ok FILE: every line has the form above, positions count from 0, indices ascend.
json_ok() {
    [ -s "$1" ] && ! grep -Evq "$json" "$1" && awk '
        { split($0, part, /"pos":|,"token":/); if (part[2] != NR - 1) exit 1
          sub(/.*"features":\[/, ""); n = split($0, entry, /\],?/); last = -1
          for (i = 1; i <= n; i++) if (entry[i] ~ /^\[[0-9]/) {
              split(substr(entry[i], 2), pair, ",")
              if (pair[1] + 0 <= last || pair[2] + 0 <= 0) exit 1
              last = pair[1] + 0 } }' "$1"
}

fails 2 'needs MODEL.qsae and SAE.qsae' features "$model" --text a
fails 2 '--top: 0 is not in' features "$model" "$sae" --text a --top 0
fails 2 "--color: 'blue' is none of" features "$model" "$sae" --text a --color blue
fails 2 "'nosite' is none of" features "$model" "$sae" --text a --site nosite
fails 1 "none of its .* called 'nobody'" features "$model" "$sae" --text a --name nobody
fails 1 'none of its .* layer 77' features "$model" "$sae" --text a --layer 77

works "$work/json" features "$model" "$sae" --text "$text" --json
check "JSON lines are valid" json_ok "$work/json"
for awkward in 'a"b\c/d' "$(printf 'tab\there\001\037\177')" 'Straße 東京 🙂🙃' \
    "$(printf 'bad \377\376 \303 end')" "$(printf 'two\nlines\r\n')"; do
    works "$work/b" features "$model" "$sae" --text "$awkward" --json
    check "JSON lines are valid for: $awkward" json_ok "$work/b"
done
for how in '--chunk 1' '--chunk 3' '--threads 2' '--isa scalar' '--top 1'; do
    works "$work/b" features "$model" "$sae" --text "$text" --json $how
    same "the same features with $how" "$work/json" "$work/b"
done
works "$work/b" features "$model" "$sae" --text "$text" --top 2
check "one line a token and a title" \
    test "$(wc -l < "$work/b")" -eq $(($(wc -l < "$work/json") + 1))
escape=$(printf '\033')
if grep -q "$escape" "$work/b"; then bad "colours without a terminal"; else ok; fi
works "$work/b" features "$model" "$sae" --text "$text" --color always
check "--color always has colours" grep -q "$escape" "$work/b"
works "$work/b" features "$model" "$sae" --chat "$text" --system "Be brief." --no-think --json
check "a chat has control tokens" grep -q '"text":"<|im_start|>"' "$work/b"
works "$work/b" features "$model" "$sae" --text '<|im_start|>' --json
if grep -q '"text":"<|im_start|>"' "$work/b"; then bad "control token in text"; else ok; fi
works "$work/b" features "$model" "$sae" --text '<|im_start|>' --special --json
check "--special reads control tokens" grep -q '"text":"<|im_start|>"' "$work/b"

# ----------------------------------------------------------------------------- generate

# Where the toy's SAE reads, and a feature that is active on the last token of the text.
place=$($QSAE features "$model" "$sae" --text a |
    sed -n '1s/^features of \([a-z_]*\), layer \([0-9]*\):.*/\1.\2/p')
feature=$(sed -n '$s/.*"features":\[\[\([0-9]*\),.*/\1/p' "$work/json")
feature=${feature:-0}

fails 2 "-n: '1.5' is not" generate "$model" --prompt a -n 1.5
fails 2 "--temp: 'nan' is not a number" generate "$model" --prompt a --temp nan
fails 2 "--temp: '0x1' is not a number" generate "$model" --prompt a --temp 0x1
fails 2 "--temp: '1,5' is not a number" generate "$model" --prompt a --temp 1,5
fails 2 '--temp: -1 is not in' generate "$model" --prompt a --temp -1
fails 2 '--temp: 1e99 is not in' generate "$model" --prompt a --temp 1e99
fails 2 '--top-p: 1.5 is not in' generate "$model" --prompt a --temp 1 --top-p 1.5
fails 2 '--top-k needs --temp' generate "$model" --prompt a --top-k 5
fails 2 '--seed: .* at least 0' generate "$model" --prompt a --seed -1
fails 2 '--seed: 18446744073709551616 is not in' generate "$model" --prompt a \
    --seed 18446744073709551616
works "$work/a" generate "$model" --prompt a -n 0
check "-n 0 is an empty line" test "$(wc -c < "$work/a")" -eq 1

works "$work/none" generate "$model" --chat "$text" --no-think -n 12
check "ends with a newline" test "$(tail -c 1 "$work/none" | wc -l)" -eq 1
for how in '--chunk 1' '--threads 2' '--isa scalar' "--sae $sae" \
    "--sae $sae --edit $place:$feature=scale:1" "--sae $sae --edit $place:$feature=add:0" \
    "--sae $sae --edit $place:$feature=add:-0.0e3" "--sae $sae --edit $place:$feature=min:0"; do
    works "$work/a" generate "$model" --chat "$text" --no-think -n 12 $how
    same "the same text with $how" "$work/none" "$work/a"
done
works "$work/a" generate "$model" --chat "$text" --no-think -n 12 --temp 0.9 --top-k 40 --top-p 0.95 \
    --min-p 0.01 --seed 7
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 --temp 0.9 --top-k 40 --top-p 0.95 \
    --min-p 0.01 --seed 7 --chunk 2
same "the same seed, the same text" "$work/a" "$work/b"
works "$work/a" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" \
    --edit "$place:$feature=set:1e4"
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" \
    --edit "$place:$feature=set:-1e4"
if cmp -s "$work/none" "$work/a" && cmp -s "$work/none" "$work/b"; then
    bad "huge edits change nothing"
else
    ok
fi
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" \
    --edit "$place:$feature=set:3" --edit "$place:$feature=min:1e4"
same "set, then at least: the latter" "$work/a" "$work/b"
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" \
    --edit "$place:$feature=set:2e4" --edit "$place:$feature=scale:0.5"
same "set, then scale: both" "$work/a" "$work/b"
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" \
    --edit "$place:$feature=set:3e4" --edit "$place:$feature=max:1e4"
same "set, then at most: the latter" "$work/a" "$work/b"

for edit in '' 'x' "$place" "$place:1" "$place:1=set" "$place:1=set:" "$place:1=put:1" \
    "$place:1=set:x" "$place:1=set:1x" "$place:1=set:nan" "$place:1=set:inf" "$place:1=set:1e39" \
    "$place:-1=set:1" "$place:x=set:1" "$place:4294967296=set:1" "$place:=set:1" \
    'nosite.0:1=set:1' 'resid_post:1=set:1' 'resid_post.:1=set:1' 'resid_post.x:1=set:1' \
    'resid_post.-1:1=set:1' 'logits.0:1=set:1' "$place:1=set:1 " " $place:1=set:1"; do
    fails 2 '--edit' generate "$model" --prompt a --sae "$sae" --edit "$edit"
done
fails 1 'no SAE given reads' generate "$model" --prompt a --edit "$place:1=set:1"
fails 1 'no SAE given reads attn_z of layer 0' generate "$model" --prompt a --sae "$sae" \
    --edit attn_z.0:1=set:1
fails 1 'the SAE has features 0\.\.' generate "$model" --prompt a --sae "$sae" \
    --edit "$place:99999999=set:1"
fails 1 '2 SAEs given read' generate "$model" --prompt a --sae "$sae" --sae "$sae" \
    --edit "$place:1=set:1"
works "$work/a" generate "$model" --prompt a -n 1 --sae "$sae" --sae "$sae" --name nobody \
    --edit "$place:1=set:1"
fails 2 '--name belongs to' generate "$model" --prompt a --name x --sae "$sae"
fails 1 'nowhere' generate "$model" --prompt a --sae "$work/nowhere.qsae"
# ------------------------------------------------------- encode, decode, export, extract

for c in encode decode export extract; do
    works "$work/a" $c --help
    check "$c --help says how" grep -q "^Usage: qsae $c SAE.qsae" "$work/a"
    fails 2 'unknown option --frobnicate' $c --frobnicate
    fails 2 "$c needs" $c
    fails 2 "$c needs" $c "$sae"
done
fails 2 '--threads: 0 is not in 1..1024' encode "$sae" x --threads 0
fails 1 'nowhere' encode "$sae" "$work/nowhere" -o "$work/out.jsonl"
fails 1 'nowhere' decode "$sae" "$work/nowhere" -o "$work/out.npy"
works "$work/a" capture "$model" --text "$text" --site "${place%.*}" --layer "${place#*.}" -o "$work/x.st"
works "$work/a" encode "$sae" "$work/x.st" -o "$work/f.jsonl"
sed 's/{"pos":\([0-9]*\),.*"features":\(.*\),"norm".*/{"row":\1,"features":\2}/' "$work/json" > "$work/want"
same "encode of a capture: what features says" "$work/f.jsonl" "$work/want"
works "$work/a" encode "$sae" "$work/x.st" -o "$work/f.safetensors" --threads 2 --isa scalar
works "$work/a" decode "$sae" "$work/f.jsonl" -o "$work/y1.npy"
works "$work/a" decode "$sae" "$work/f.safetensors" -o "$work/y2.npy" --threads 3
same "decode of JSON Lines and of CSR" "$work/y1.npy" "$work/y2.npy"
works "$work/a" capture "$model" --tokens 1,2 --site resid_pre --site resid_mid --layer 0 -o "$work/two.st"
fails 1 'choose one with --tensor NAME: layers.0.resid_pre, ' encode "$sae" "$work/two.st" -o "$out"
works "$work/a" encode "$sae" "$work/two.st" --tensor layers.0.resid_mid -o "$work/f.jsonl"

works "$work/a" extract "$sae" --features "$feature,0,5,7" -o "$work/pack.qsae"
works "$work/a" info "$work/pack.qsae"
check "info says which features a pack has" grep -q '^  a pack: features .*5' "$work/a"
works "$work/a" info "$work/pack.qsae" --json
check "as JSON, too" grep -q '"features":\[0,' "$work/a"
works "$work/b" features "$model" "$work/pack.qsae" --text "$text" --json
check "a pack's feature keeps its number" grep -q "\[$feature,[0-9]" "$work/b"
works "$work/a" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" --edit "$place:$feature=set:1e4"
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 --sae "$work/pack.qsae" \
    --edit "$place:$feature=set:1e4"
same "an edit by a pack" "$work/a" "$work/b"
fails 1 'is not among them' generate "$model" --prompt a --sae "$work/pack.qsae" --edit "$place:1=set:1"
fails 1 'the SAE has features 0\.\.' extract "$sae" --features 99999999 -o "$out"
fails 1 'is the SAE: choose another' extract "$sae" --features 1 -o "$sae"

works "$work/a" export "$sae" --format saelens -o "$work/folder"
works "$work/a" convert "$work/folder" -o "$work/folder.qsae"
works "$work/a" encode "$work/folder.qsae" "$work/x.st" -o "$work/f.jsonl"
same "an exported SAE, converted, gives the same features" "$work/f.jsonl" "$work/want"
fails 1 'the folder is not empty' export "$sae" --format saelens -o "$work/folder"
works "$work/a" export "$sae" --format npz -o "$work/npz"
works "$work/a" export "$sae" --format control-vector --edit "$place:$feature=add:2" -o "$work/v.gguf"
fails 1 'only the operation add' export "$sae" --format control-vector --edit "$place:$feature=set:2" -o "$out"
if ls "$work"/*.tmp-* "$work"/*.part-* > /dev/null 2>&1; then bad "temporary files are left"; else ok; fi

# A row 100 times as long as the others is there, and is said to be.
{ printf '\223NUMPY\001\000\166\000'
  printf "%-117s\n" "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 128), }"
  for row in 1 2 3 4 5; do
      i=0
      while [ $i -lt 128 ]; do
          if [ $row = 3 ]; then printf '\000\000\310\102'; else printf '\000\000\200\077'; fi
          i=$((i + 1))
      done
  done; } > "$work/sink.npy"
works "$work/a" encode "$sae" "$work/sink.npy" -o "$work/f.jsonl"
check "a sink is reported" grep -q '^note: 1 row is more than 10 times .*: row 2 (100x)$' "$work/a"
check "and encoded" test "$(wc -l < "$work/f.jsonl")" -eq 5

# ------------------------------------------------------------------------------- suites

layer=${place#*.}
for folder in here twin elsewhere; do
    mkdir "$work/$folder"
    cp examples/toy/sae/cfg.json examples/toy/sae/sae_weights.safetensors "$work/$folder"
done
sed "s/blocks\.$layer\./blocks.0./" examples/toy/sae/cfg.json > "$work/elsewhere/cfg.json"
works "$work/a" convert "$work/here" "$work/elsewhere" -o "$work/suite.qsae"
works "$work/a" convert "$work/here" "$work/twin" -o "$work/twins.qsae"
fails 1 "2 of its 2 SAEs fit; .*: ${place%.*}.0 .elsewhere., $place .here." features "$model" "$work/suite.qsae" --text a
fails 1 '2 of its 2 SAEs fit' encode "$work/suite.qsae" "$work/x.st" -o "$work/out.jsonl"
works "$work/a" encode "$work/suite.qsae" "$work/x.st" -o "$work/f.jsonl" --site "${place%.*}" --layer "$layer"
same "encode finds its member" "$work/f.jsonl" "$work/want"
works "$work/a" info "$work/suite.qsae" --layer 0
check "info of one member" test "$(grep -c 'features of' "$work/a")" -eq 1
fails 1 'no SAE given reads attn_z of layer 0; there are ' generate "$model" --prompt a \
    --sae "$work/suite.qsae" --edit attn_z.0:1=set:1
fails 1 '2 of its 2 SAEs fit' features "$model" "$work/twins.qsae" --text a --layer "$layer"
works "$work/b" features "$model" "$work/suite.qsae" --text "$text" --json --layer "$layer"
same "a member by its layer" "$work/json" "$work/b"
works "$work/b" features "$model" "$work/twins.qsae" --text "$text" --json --name twin
same "a member by its name" "$work/json" "$work/b"
works "$work/b" features "$model" "$work/suite.qsae" --text a --name elsewhere
check "the member elsewhere reads layer 0" grep -q 'layer 0' "$work/b"
edit=$place:$feature=set:1e4
works "$work/a" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" --edit "$edit"
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 \
    --sae "$work/suite.qsae" --edit "$edit"
same "an edit finds its member" "$work/a" "$work/b"
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 --sae "$sae" \
    --sae "$work/suite.qsae" --name elsewhere --edit "$edit" --edit "${place%.*}.0:1=add:0"
same "edits of two layers" "$work/a" "$work/b"
fails 1 '2 SAEs given read' generate "$model" --prompt a --sae "$work/twins.qsae" \
    --edit "$edit"
works "$work/b" generate "$model" --chat "$text" --no-think -n 12 \
    --sae "$work/twins.qsae" --name twin --edit "$edit"
same "--name settles it" "$work/a" "$work/b"

# --------------------------------------------------------------------------- output fails

if [ -c /dev/full ]; then
    $QSAE generate "$model" --prompt "$text" -n 3 > /dev/full 2> "$work/stderr"
    check "a full disk is an error" test $? -eq 1
    check "and is said" grep -q '^qsae: cannot write' "$work/stderr"
    $QSAE capture "$model" --text a -o /dev/full > "$work/stdout" 2> "$work/stderr"
    check "a device is no output file" test $? -eq 1
fi

# ------------------------------------------------------------------------- broken files

# all_refuse FILE AS WHAT: every command that reads it as a model or an SAE says so.
all_refuse() {
    if [ "$2" = model ]; then
        fails 1 '' capture "$1" --text a -o "$out"
        fails 1 '' features "$1" "$sae" --text a
        fails 1 '' generate "$1" --prompt a -n 1
    else
        fails 1 '' features "$model" "$1" --text a
        fails 1 '' generate "$model" --prompt a -n 1 --sae "$1" --edit "$place:1=set:1"
    fi
}

flip() { # FILE POSITION: one bit of that byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    bit=$((1 << ($2 % 8)))
    printf "\\$(printf '%03o' $((byte ^ bit)))" |
        dd of="$1" bs=1 seek="$2" conv=notrunc 2> /dev/null
}

steps=24
[ -z "$RUN" ] || steps=6 # an emulator is slow
for kind in model sae; do
    file=$model
    [ $kind = model ] || file=$sae
    size=$(wc -c < "$file")
    broken=$work/broken.qsae
    for keep in 0 1 7 8 63 64 65 319 320 321 1000 $((size / 2)) $((size - 64)) $((size - 1)); do
        head -c "$keep" "$file" > "$broken"
        all_refuse "$broken" $kind
        fails 1 '' info "$broken"
    done
    { cat "$file"; printf '\0'; } > "$broken"
    all_refuse "$broken" $kind
    fails 1 '' info "$broken"
    # Single bits: densely in header and directory, then all over the file.
    cp "$file" "$broken"
    for at in 0 9 12 16 24 28 32 36 40 48 56 64 100 150 300 320 330 400 512; do
        flip "$broken" $at
        all_refuse "$broken" $kind
        fails 1 '' info "$broken"
        flip "$broken" $at
    done
    i=1
    while [ $i -le $steps ]; do
        at=$((size / (steps + 1) * i + i * 37 % 61))
        flip "$broken" $at
        all_refuse "$broken" $kind
        flip "$broken" $at
        i=$((i + 1))
    done
    same "the bits are back" "$file" "$broken"
done
finish
