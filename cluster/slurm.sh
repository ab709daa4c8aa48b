#!/usr/bin/env bash
# An experiment on Slurm: one Ray cluster for the job, ended with it.
#
#   export LAKD_STORAGE=/shared/lakd
#   sbatch cluster/slurm.sh paper-fold [--set dotted.key=value ...]
#   LAKD_JOB=run_grid sbatch cluster/slurm.sh paper --set train.parallel_runs=4
#
# Submit from the repository, on a file system that all nodes share, with .venv in it. One GPU goes to one training
# worker: nodes x gpus-per-node must be at least the experiment's train.workers (here 2 x 2 = 4).
#SBATCH --job-name=lakd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --exclusive
#SBATCH --output=lakd-%j.log
set -euo pipefail

die() {
  echo "slurm.sh: $*" >&2
  exit 1
}

[[ -n ${SLURM_JOB_ID:-} ]] || die "submit this with sbatch"
(($#)) || die "name an experiment: sbatch cluster/slurm.sh paper-fold"
export LAKD_JOB=${LAKD_JOB:-pipeline} # a script in jobs/
[[ -f $SLURM_SUBMIT_DIR/jobs/$LAKD_JOB.py ]] || die "LAKD_JOB=$LAKD_JOB: there is no jobs/$LAKD_JOB.py here"
storage=${LAKD_STORAGE:-}
[[ $storage == /* || $storage == s3://* ]] || die "set LAKD_STORAGE to a folder that all nodes share, or to s3://bucket/prefix"

cd "$SLURM_SUBMIT_DIR"
# shellcheck source=/dev/null
source "${LAKD_VENV:-.venv}/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=${RAY_PORT:-6379}

# Calls within the cluster carry its token: no proxy may see them.
export no_proxy="localhost,127.0.0.1,::1,169.254.169.254,metadata.google.internal,$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)${no_proxy:+,$no_proxy}${NO_PROXY:+,$NO_PROXY}"
export NO_PROXY=$no_proxy
# The paths of Ray's sockets may not exceed 107 bytes; a TMPDIR of the job is often too long.
temporary=${TMPDIR:-/tmp}
((${#temporary} <= 36)) || export RAY_TMPDIR=/tmp

# The token: readable by you alone, in the home that all nodes share.
umask 077
export RAY_AUTH_MODE=token
ray get-auth-token --generate >/dev/null 2>&1 || die "cannot make a token in ~/.ray"
chmod 600 "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" 2>/dev/null || true # an older one may be readable by others

export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # its own 30 s are too few for nodes that load from a network disk
export RAY_raylet_start_wait_time_s=120
# Ray's metrics listen on all addresses without the token.
export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=-1 DASHBOARD_METRIC_PORT=-1
# What every worker of the cluster needs; the same as in runtime_env.yaml, which belongs to `ray job submit`.
export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.2 RAY_TRAIN_ENABLE_STATE_TRACKING=1
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 RAY_AIR_NEW_OUTPUT=0 TOKENIZERS_PARALLELISM=false
export HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error

# symmetric-run ends with 0 also when Ray never started, so the pipeline leaves its exit status in a file.
result=$(mktemp "$PWD/.lakd-$SLURM_JOB_ID.XXXXXX")
trap 'rm -f "$result" "$result.pid"' EXIT
export LAKD_RESULT=$result

# Two minutes before the end of the time (--signal above) and on `scancel --batch --signal=TERM`, Slurm notifies this
# shell alone. It passes that on to the driver, on this node, which saves the state of training and ends the job.
# Submit the job again to resume.
trap 'kill -TERM "$(cat "$result.pid")" 2>/dev/null || true' TERM USR1 INT

srun --kill-on-bad-exit=1 ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus "$SLURM_CPUS_PER_TASK" --disable-usage-stats -- \
  bash -c 'status=0; RAY_ADDRESS=auto python "jobs/$LAKD_JOB.py" "$@" & echo $! >"$LAKD_RESULT.pid"; wait $! || status=$?; echo "$status" >"$LAKD_RESULT"; exit "$status"' \
  pipeline "$@" --set "storage=$storage" &
srun=$!
while kill -0 "$srun" 2>/dev/null; do wait "$srun" || true; done # a signal ends `wait` early

[[ -s $result ]] || die "Ray did not start, or the pipeline was killed: see above"
exit "$(cat "$result")"
