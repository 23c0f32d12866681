#!/usr/bin/env bash
# From nothing to a trained policy and a report: simulated recordings -> shards -> policy -> validation -> runs/quickstart/report.html.
# A second start goes on where the first stopped; `rm -rf runs/quickstart` begins anew.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
began=$SECONDS
out=runs/quickstart
egoscale() { .venv/bin/egoscale "$@"; }
say() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - began)); }

if [ ! -d $out/recordings ]; then
  say "1/5 simulate: people at a table, filmed from the head, written as EgoDex recordings"
  rm -rf $out/recordings.partial
  egoscale simulate --output=$out/recordings.partial --episodes=160
  mv $out/recordings.partial $out/recordings
fi
if [ ! -d $out/shards ]; then
  say "2/5 prepare: read, check, retarget to the robot hand, store as shards"
  egoscale prepare --source=simulated --input=$out/recordings --output=$out/shards --workers=2
fi
say "3/5 train: a small vision-language-action policy"
egoscale train --config=configs/quickstart.py --workdir=$out --config.data.shards=$out/shards
say "4/5 evaluate: held-out episodes, fixed noise, two baselines"
egoscale evaluate --workdir=$out
say "5/5 report and a video"
egoscale report --workdir=$out --shards=$out/shards --output=$out/report.html
egoscale view --input=$out/shards --output=$out/hands.mp4 --workdir=$out
say "done: open $out/report.html"
