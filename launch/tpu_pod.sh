#!/usr/bin/env bash
# A Cloud TPU slice by queued resources; every worker runs launch/train.sh with the same arguments and finds the others by itself.
# NOT RUN: no TPU was at hand. What was run is the same program on two processes (launch/local_pod.sh), and its compiling for TPUs
# (`egoscale plan`). The commands are those of cloud.google.com/tpu/docs (2026).
#
#   export TPU=egoscale ZONE=us-east5-a TYPE=v5p-512              # v5p-512: 256 chips, 4x8x8; v6e-256: 16x16; v5litepod-256: 16x16
#   ./launch/tpu_pod.sh create [--spot]                           # asks for it, and waits until it is there
#   ./launch/tpu_pod.sh copy                                      # this checkout, and its environment, to all workers
#   ./launch/tpu_pod.sh train --config=configs/pretrain.py --workdir=/mnt/runs/pretrain --config.data.shards=/mnt/shards
#   ./launch/tpu_pod.sh delete
#
# --workdir must be a path that all workers share (Filestore, or a bucket mounted by gcsfuse at /mnt on each). `train` prints process 0's log and
# anyone's errors. Preempted (exit code 75 on the workers) or killed: create again, copy, and the same `train` goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${TPU:?the name of the TPU}" "${ZONE:?its zone}"
where=(--zone="$ZONE" --quiet)
on_all() { gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker=all --command="$1"; }

verb="${1:-}"
[ $# -eq 0 ] || shift
case "$verb" in
  create)
    case "${TYPE:?as v5p-512}" in
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) echo "tpu_pod: TYPE=$TYPE: expected v5p-N, v5litepod-N or v6e-N" >&2 && exit 1 ;;
    esac
    gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$TYPE" --runtime-version="$runtime" "${where[@]}" "$@"
    until [ "$(gcloud compute tpus queued-resources describe "$TPU" "${where[@]}" --format='value(state.state)')" = ACTIVE ]; do sleep 30; done
    ;;
  copy)
    git archive --prefix=egoscale_jax/ -o /tmp/egoscale_jax.tar.gz HEAD
    gcloud compute tpus tpu-vm scp /tmp/egoscale_jax.tar.gz "$TPU:" "${where[@]}" --worker=all
    on_all "tar xzf egoscale_jax.tar.gz && egoscale_jax/launch/test.sh --setup-only"
    ;;
  train)
    on_all "cd egoscale_jax && EGOSCALE_COORDINATOR=auto EGOSCALE_EXTRA=tpu ./launch/train.sh $(printf '%q ' "$@")"
    ;;
  delete)
    gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force
    ;;
  *) echo "tpu_pod: found '$verb', expected create, copy, train or delete" >&2 && exit 1 ;;
esac
