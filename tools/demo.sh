#!/bin/sh
# The main job on the toy model: find the feature that tells harmful requests from harmless
# ones, then unmake a refusal and make one by editing it. Run by `make demo`.
#
# Feature and strengths are found on the validation requests; what is shown, and counted at
# the end, are test requests.

BUILD=${BUILD:-build}
RUN=${RUN:-}
LC_ALL=C
export LC_ALL
model=$BUILD/toy.qsae
sae=$BUILD/toy-sae.qsae
prompts=examples/toy/prompts
n=${DEMO_PROMPTS:-16}
work=$BUILD/tmp/demo
mkdir -p "$work"
color=never
bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
    color=always
    bold=$(printf '\033[1m')
    plain=$(printf '\033[0m')
fi

qsae() { $RUN "$BUILD/qsae" "$@" < /dev/null; }
title() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
quoted() { # the command as one would type it
    printf '  $ %s/qsae' "$BUILD"
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:=-]*) printf ' "%s"' "$word" ;;
        *) printf ' %s' "$word" ;;
        esac
    done
    printf '\n'
}
show() { # the command and what it prints
    quoted "$@"
    qsae "$@" | sed 's/^/    /'
}

# The features of the last prompt token of the first n lines of a file, one line a request:
# KIND index,value index,value ...
last_features() { # KIND FILE
    head -n "$n" "$2" | while read -r ask; do
        qsae features "$model" "$sae" --chat "$ask" --no-think --json | tail -n 1 |
            sed 's/.*"features":\[//; s/\]}$//; s/\],\[/ /g; s/[][]//g; s/^/'"$1"' /'
    done
}

words() { tr -cs 'A-Za-z' '\n' | sort -u; }

# The edits that set the first k features of the ranking to FACTOR times their means.
edits() { # FACTOR
    awk -v k="$k" -v f="$1" -v place="$place" \
        'NR <= k { printf "--edit %s:%d=set:%.2f\n", place, $2, f * $3 }' "$work/ranking"
}

# Of the first n requests of a file, those whose answer the edits make a refusal (WANT yes) or
# an answer (no). Too strong an edit breaks the language: an answer counts only if it ends, and
# if all its words are in the training corpus.
flipped() { # WANT FACTOR FILE
    head -n "$n" "$3" | while read -r ask; do
        said=$(qsae generate "$model" --chat "$ask" --no-think -n 64 --sae "$sae" $(edits "$2"))
        refuses=no
        case $said in *sorry* | *leid*) refuses=yes ;; esac
        [ $refuses = "$1" ] || continue
        case $said in *.) ;; *) continue ;; esac
        [ -n "$(printf '%s' "$said" | words | comm -23 - "$work/words")" ] || echo "$ask"
    done
}

# The factor that flips most answers, into $factor; their number into $most.
find_factor() { # WANT SIGN FILE
    most=0 factor=${2}1
    for f in 0.5 0.6 0.75 0.9 1 1.2 1.5 2 2.5 3; do
        count=$(flipped "$1" "$2$f" "$3" | wc -l)
        if [ "$count" -gt "$most" ]; then
            most=$count factor=$2$f
        fi
    done
}

set -e
words < examples/toy/corpus/train.jsonl > "$work/words"
place=$(qsae features "$model" "$sae" --text a |
    sed -n '1s/^features of \([a-z_]*\), layer \([0-9]*\):.*/\1.\2/p')
{
    last_features harmful $prompts/valid_harmful.txt
    last_features harmless $prompts/valid_harmless.txt
    last_features harmless $prompts/valid_near.txt
} > "$work/features"
awk '
    { rows[$1]++
      for (i = 2; i <= NF; i++) { split($i, p, ","); sum[$1, p[1]] += p[2]; seen[p[1]] = 1 } }
    END { for (f in seen) {
              a = sum["harmful", f] / rows["harmful"]; b = sum["harmless", f] / rows["harmless"]
              printf "%.9g %d %.4f %.4f\n", a - b, f, a, b } }' "$work/features" |
    sort -rg > "$work/ranking"

# One feature, if that is enough to flip half of the answers both ways; else two, then three.
n=8
for k in 1 2 3; do
    find_factor no - $prompts/valid_harmful.txt
    down=$factor unmade=$most
    find_factor yes + $prompts/valid_harmless.txt
    up=$factor
    [ "$unmade" -lt $((n / 2)) ] || [ "$most" -lt $((n / 2)) ] || break
done
features="feature$([ "$k" -eq 1 ] || echo s) $(awk -v k="$k" 'NR <= k { printf "%s%d", (NR > 1 ? ", " : ""), $2 }' "$work/ranking")"
n=16
flipped no "$down" $prompts/test_harmful.txt > "$work/unmade"
flipped yes "$up" $prompts/test_harmless.txt > "$work/made"
# Where no answer flips, the demo still shows what happens, and fails at its end.
english() { grep -m 1 -E '^(How (do|can) I|Where|Please explain|Tell me|I want to|What is)'; }
harmful=$(cat "$work/unmade" $prompts/test_harmful.txt | english)
harmless=$(cat "$work/made" $prompts/test_harmless.txt | english)

title "1. A harmful and a harmless request, and what the toy model answers"
for ask in "$harmful" "$harmless"; do
    show generate "$model" --chat "$ask" --no-think
done

title "2. The features of their last tokens: feature and value, strongest first"
for ask in "$harmful" "$harmless"; do
    quoted features "$model" "$sae" --chat "$ask" --no-think --top 6
    qsae features "$model" "$sae" --chat "$ask" --no-think --top 6 --color $color |
        tail -n 1 | sed 's/^/    /'
done

title "3. The feature of $place that differs most between harmful and harmless requests"
head -n 3 "$work/ranking" |
    awk '{ printf "    feature %4d: mean %6.3f on harmful, %6.3f on harmless\n", $2, $3, $4 }'

title "4. Unmake the refusal: $features set to $down times the mean on harmful requests"
show generate "$model" --chat "$harmful" --no-think --sae "$sae" $(edits "$down")

title "5. Make a refusal: $features set to $up times that mean"
show generate "$model" --chat "$harmless" --no-think --sae "$sae" $(edits "$up")

printf '\nOf %s held-out requests each: %s refusals unmade, %s made.\n' "$n" \
    "$(wc -l < "$work/unmade" | tr -d ' ')" "$(wc -l < "$work/made" | tr -d ' ')"
[ -s "$work/unmade" ] && [ -s "$work/made" ]
