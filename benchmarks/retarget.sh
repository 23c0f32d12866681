#!/usr/bin/env bash
# The tables of docs/retargeting.md, by the neutral bench: benchmarks/retarget.sh BENCH_DIR PYTHON OUT_DIR [speed|pairs|curve|ablation ...]
# PYTHON has the bench's peers (its README) and this package; BENCH_DIR is where its run.py stands.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,3p "$0" >&2; exit 2; }
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
bench="$1" python="$2" out="$(mkdir -p "$3" && cd "$3" && pwd)"
shift 3
export PYTHONPATH="$here/..:$here"
run() { (cd "$bench" && "$python" run.py --out "$out/$1.json" "${@:2}" | cut -c1-230); }
ours() { for name in "$@"; do printf '%s=retarget_solver:%s ' "$name" "$name"; done; }

for table in "${@:-speed}"; do
  echo "== $table"
  case "$table" in
    speed) run speed --hands sharpa --data mediapipe manus --only dex-vector --solver $(ours make tips frames) ;;
    pairs) run pairs --data mediapipe dexycb manus --only dex-vector --solver $(ours make) --repeats 1 ;;
    curve) run curve --hands sharpa --data mediapipe --repeats 0 --only none \
      --solver $(ours jerk_05 jerk_1 jerk_2 jerk_3 jerk_4 jerk_8 gauss_05 gauss_1 gauss_2 gauss_3 gauss_5) ;;
    ablation) run ablation --hands sharpa --data mediapipe --repeats 0 --only none \
      --solver $(ours plain quadratic no_pinch hard_tip no_direction bone knuckle) ;;
    *) echo "unknown table $table: expected speed, pairs, curve or ablation" >&2; exit 2 ;;
  esac
done
