#!/usr/bin/env bash
# A pod on one machine: 2 processes with 4 CPU devices each, joined over 127.0.0.1 by gloo. The same program as on a real one.
#
#   ./launch/local_pod.sh --config=configs/pretrain.py:debug --workdir=runs/pod --config.data.shards=DIR
#
# What one process does not survive ends both. The exit code is 75 if all were preempted (SIGTERM), else the first that is not 0.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ -z "${EGOSCALE_PYTHON:-}" ]; then
  source "$here/setup.sh"
  export EGOSCALE_PYTHON="$PWD/.venv/bin/python"
fi
export EGOSCALE_PROCESSES="${EGOSCALE_PROCESSES:-2}" JAX_NUM_CPU_DEVICES="${JAX_NUM_CPU_DEVICES:-4}" JAX_PLATFORMS=cpu
port="$("$EGOSCALE_PYTHON" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1]); s.close()')"
export EGOSCALE_COORDINATOR="127.0.0.1:$port" JAX_COORDINATOR_BIND_ADDRESS="127.0.0.1:$port"

pids=()
for ((i = 0; i < EGOSCALE_PROCESSES; i++)); do
  EGOSCALE_PROCESS=$i "$here/train.sh" "$@" &
  pids+=($!)
done
trap 'signalled=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

code=0
for ((left = EGOSCALE_PROCESSES; left > 0; left--)); do
  while
    status=0 signalled=0
    wait -n || status=$?
    [ $signalled -eq 1 ] # it was the trap that ended the waiting, and no process
  do :; done
  [ $status -ne 127 ] || break # none is left
  [ $code -ne 0 ] || code=$status
  if [ $status -ne 0 ] && [ $status -ne 75 ]; then
    sleep 2 # the others may be about to tell why
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
done
exit $code
