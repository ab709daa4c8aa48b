#!/usr/bin/env bash
# gpu.sh [--small] [--minutes N] [--sections "NAME ..."] [FOLDER]
#
# Measure this project on one GPU in at most ten minutes, and write FOLDER/gpu.md (one table, with the aims), gpu.json
# (all raw figures) and gpu.log. FOLDER is $OUT if that is set, else gpu-results. Each section of benchmarks/gpu.py runs in
# its own process and has its own limit of time; one that fails is marked in the table and does not stop the others. The
# table is written again after each section. --small uses tiny networks and runs on a CPU too: it tests the script.
# Nothing is downloaded. PYTHON chooses the interpreter, COMMIT names the commit where there is no git.
set -uo pipefail
cd "$(dirname "$0")/.."
small=() minutes=9.7 slack=1 out=${OUT:-gpu-results}
sections="environment ceilings share epoch ray_train endpoint tests"
while (($#)); do
  case $1 in
    --small) small=(--small) minutes=15 slack=3 ;; # two shared cores may be slow
    --minutes) minutes=$2; shift ;;
    --sections) sections=$2; shift ;;
    -*) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
# Seconds of each section. They add up to more than the total: few sections need all of their time.
declare -A limits=([environment]=60 [ceilings]=45 [share]=130 [epoch]=140 [ray_train]=160 [endpoint]=150 [tests]=300)

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
scratch=$(mktemp -d) running= section=
trap 'rm -rf "$scratch"' EXIT
trap 'stop_running' TERM INT
[ -d .venv ] && extensions=$PWD/.venv/torch_extensions || extensions=$scratch/extensions
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$extensions}
mkdir -p "$out" "$scratch/raw"; : >"$out/gpu.log"
raw=$scratch/raw
deadline=$(awk "BEGIN {print int($EPOCHREALTIME + 60 * $minutes)}")

write_table() { "$python" benchmarks/gpu.py table --raw "$raw" --out "$out" "${small[@]}"; }

finish_section() { # STATUS
  echo "$1 $(awk "BEGIN {print $EPOCHREALTIME - $started}")" >"$raw/$section.status"
  { echo "== $section"; cat "$raw/$section.log"; } >>"$out/gpu.log"
  running=
  write_table
}

stop_running() { # the table shows what the section has measured so far
  if [ -n "$running" ]; then
    kill "$running" # `timeout`, which ends the processes of the section
    finish_section 124
  fi
  exit 143
}

for section in $sections; do
  [ -n "${limits[$section]:-}" ] || { echo "unknown section $section" >&2; exit 2; }
  started=$EPOCHREALTIME
  left=$((deadline - ${started%.*}))
  limit=$((slack * limits[$section]))
  limit=$((limit < left ? limit : left))
  if ((limit < 10)); then
    echo "no time left" | tee "$raw/$section.log"
    write_table
    continue
  fi
  echo "== $section, at most $limit s"
  timeout --kill-after=5 "$limit" "$python" benchmarks/gpu.py run "$section" --raw "$raw" "${small[@]}" \
    >"$raw/$section.log" 2>&1 &
  running=$!
  wait "$running"
  finish_section "$?"
done
cat "$out/gpu.md"
