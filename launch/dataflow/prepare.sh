#!/usr/bin/env bash
# `egoscale prepare` on Dataflow's workers, started on a machine of the same project that has the bucket mounted. NOT RUN on Dataflow: none was
# at hand; the same command with --runner=DirectRunner is (tests/data/test_bucket.py).
#
#   export PROJECT=… REGION=us-central1 BUCKET=… IMAGE=REGION-docker.pkg.dev/PROJECT/egoscale/worker
#   gcsfuse --implicit-dirs "$BUCKET" /mnt/bucket
#   ./launch/dataflow/prepare.sh --source=egodex --input=/mnt/bucket/egodex --output=/mnt/bucket/shards
#
# Killed or failed, the same command goes on with the parts that are missing. MOUNT (default /mnt/bucket), WORKERS (most at a time, default 64) and
# MACHINE (default n2-standard-8) may be set; RUNNER=DirectRunner tries it all on this machine.
set -euo pipefail
: "${PROJECT:?the Google Cloud project}" "${REGION:?its region}" "${BUCKET:?its name, without gs://}" "${IMAGE:?of launch/dataflow/Containerfile}"
mount="${MOUNT:-/mnt/bucket}"
beam="--runner=${RUNNER:-DataflowRunner} --project=$PROJECT --region=$REGION --temp_location=gs://$BUCKET/tmp --job_name=egoscale-prepare"
beam+=" --sdk_container_image=$IMAGE --experiments=use_runner_v2 --max_num_workers=${WORKERS:-64} --worker_machine_type=${MACHINE:-n2-standard-8}"
exec "${EGOSCALE_PYTHON:-python3}" -m egoscale_jax.cli prepare "$@" --beam="$beam" --bucket="$mount=gs://$BUCKET"
