#!/usr/bin/env bash
# A Ray cluster on this machine. Every port requires a token that only you can read; the dashboard, through which jobs
# are submitted, listens on 127.0.0.1. (Ray's other ports listen on all addresses: on a laptop, keep a firewall.) Ray's
# metrics, which would need no token, are off; export RAY_enable_metrics_collection=1 before `start` to have them.
#
#   cluster/local.sh start [--cpus N] [--workers K] [--port P] [--dashboard-port P]
#   cluster/local.sh stop | status
#
# --cpus N     logical CPUs of each node (default: what Ray finds)
# --workers K  further nodes on this machine, to test a cluster of several nodes (default 0)
#
# Run it from the environment in which lakd-ray is installed: jobs use the Python that started Ray. The state is in
# $LAKD_RAY_DIR (default /tmp/lakd-ray-UID). Jobs see the AWS_* variables of the shell that runs `start`.
set -euo pipefail

# Calls on this machine carry the token: no proxy may see them.
export no_proxy="localhost,127.0.0.1,::1,169.254.169.254,metadata.google.internal,$(hostname)${no_proxy:+,$no_proxy}${NO_PROXY:+,$NO_PROXY}"
export NO_PROXY=$no_proxy

dir=${LAKD_RAY_DIR:-/tmp/lakd-ray-$(id -u)}
token="$dir/.ray/auth_token"
nodes="$dir/nodes" # one line a node: process id, name

die() {
  echo "local.sh: $*" >&2
  exit 1
}

usage() {
  sed -n '6,7s/^# *//p' "$0" >&2
  exit 2
}

# Succeeds if the process is a node of this cluster, and not a later process with the same id.
alive() {
  [[ -O /proc/$1 ]] && tr '\0' '\n' 2>/dev/null <"/proc/$1/environ" | grep -qxF "RAY_AUTH_TOKEN_PATH=$token"
}

running() {
  local pid name
  [[ -f $nodes ]] || return 1
  while read -r pid name; do
    alive "$pid" && return 0
  done <"$nodes"
  return 1
}

number() {
  [[ ${2:-} =~ ^[0-9]+$ ]] || die "$1 takes a number, found '${2:-nothing}'"
}

# launch NAME OPTION... : one node in the background, its output in a log. A raylet stops if its agents have not
# reported their ports within 15 s each; fixed ports leave fewer reports that a busy machine can miss.
launch() {
  local name=$1 ports
  shift
  read -ra ports <<<"$(free_ports)"
  set -- "$@" --dashboard-agent-listen-port "${ports[0]}" --dashboard-agent-grpc-port "${ports[1]}" \
    --metrics-export-port "${ports[2]}" --runtime-env-agent-port "${ports[3]}"
  setsid ray start --block --disable-usage-stats "$@" >"$dir/$name.log" 2>&1 </dev/null &
  echo "$! $name" >>"$nodes"
}

free_ports() {
  python -S -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in held))'
}

# wait_for NODES : until as many nodes have joined, as the dashboard sees it.
wait_for() {
  local deadline=$((SECONDS + ${LAKD_RAY_START_S:-300})) pid name
  until joined "$1"; do
    while read -r pid name; do
      alive "$pid" || give_up "$name" "$name ended while starting"
    done <"$nodes"
    ((SECONDS < deadline)) || give_up head "Ray was not up in time"
    sleep 1
  done
}

joined() {
  python -S - "$dashboard" "$token" "$1" 2>/dev/null <<'PYTHON'
import json, sys, urllib.request
port, token, wanted = sys.argv[1:]
address, bearer = f"http://127.0.0.1:{port}/nodes?view=summary", {"Authorization": "Bearer " + open(token).read().strip()}
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with direct.open(urllib.request.Request(address, headers=bearer), timeout=20) as answer:
    nodes = json.load(answer)["data"]["summary"]
sys.exit(sum(node["raylet"].get("state") == "ALIVE" for node in nodes) < int(wanted))
PYTHON
}

give_up() {
  tail -n 20 "$dir/$1.log" >&2
  stop >&2
  die "$2; its last lines are above, more is in $dir/$1.log and $dir/ray. On a very busy machine, try again"
}

start() {
  local cpus=() workers=0 index
  port=6379 dashboard=8265
  while (($#)); do
    case $1 in
    --cpus) number "$@" && cpus=(--num-cpus "$2") ;;
    --workers) number "$@" && workers=$2 ;;
    --port) number "$@" && port=$2 ;;
    --dashboard-port) number "$@" && dashboard=$2 ;;
    *) usage ;;
    esac
    shift 2
  done
  command -v ray >/dev/null || die "there is no \`ray\` here: activate the environment first (source .venv/bin/activate)"
  python -c 'import lakd_ray' 2>/dev/null || die "the \`python\` here has no lakd_ray: activate the environment first"
  running && die "already running; \`$0 stop\` first"
  ((${#dir} <= 40)) || die "LAKD_RAY_DIR is too long ($dir): Ray's socket paths may not exceed 107 bytes"
  for index in "$port" "$dashboard"; do
    ! (exec 3<>"/dev/tcp/127.0.0.1/$index") 2>/dev/null || die "port $index is taken; choose others with --port and --dashboard-port"
  done

  umask 077
  mkdir -p "$dir"
  [[ -O $dir && ! -L $dir ]] || die "$dir is not yours; set LAKD_RAY_DIR to a folder of your own"
  chmod 700 "$dir"
  rm -rf -- "$dir/ray" # the last session's logs
  : >"$nodes"
  chmod -f 600 "$token" || true
  [[ -s $token ]] || HOME=$dir env -u RAY_AUTH_TOKEN_PATH ray get-auth-token --generate >/dev/null 2>"$dir/token.log" || die "no token: see $dir/token.log"
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
  export RAY_raylet_start_wait_time_s=${RAY_raylet_start_wait_time_s:-120} RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1
  export RAY_enable_metrics_collection=${RAY_enable_metrics_collection:-0}
  export AUTOSCALER_METRIC_PORT=${AUTOSCALER_METRIC_PORT:--1} DASHBOARD_METRIC_PORT=${DASHBOARD_METRIC_PORT:--1}

  launch head --head --port "$port" --temp-dir "$dir/ray" \
    --include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" ${cpus[@]+"${cpus[@]}"}
  wait_for 1
  for ((index = 1; index <= workers; index++)); do
    launch "worker-$index" --address "127.0.0.1:$port" ${cpus[@]+"${cpus[@]}"}
  done
  wait_for $((1 + workers))
  echo "$dashboard" >"$dir/dashboard"
  echo "Ray runs on this machine ($((1 + workers)) node(s)), dashboard http://127.0.0.1:$dashboard"
  next "$dashboard"
}

next() {
  cat <<TEXT
In every shell that uses the cluster:
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token RAY_API_SERVER_ADDRESS=http://127.0.0.1:$1
Then, from the repository:
  ray job submit --runtime-env runtime_env.yaml --working-dir . -- python jobs/pipeline.py demo --set storage=$HOME/lakd
  (python jobs/submit.py pipeline demo --set storage=$HOME/lakd   the same, with the exit status of the job)
The dashboard requests the token once: cat $token
TEXT
  [[ -z ${http_proxy:-}${HTTP_PROXY:-} ]] || echo "With a proxy in the environment, \`ray job submit\` also needs: export NO_PROXY=$NO_PROXY no_proxy=$NO_PROXY"
}

# Stops the nodes of this cluster only: \`ray stop\` would stop every Ray on the machine.
stop() {
  local pid name deadline left
  if [[ ! -f $nodes ]]; then
    echo "not running"
    return
  fi
  while read -r pid name; do
    alive "$pid" && kill -TERM "$pid" 2>/dev/null
  done < <(tac "$nodes") || true
  deadline=$((SECONDS + 30))
  while running && ((SECONDS < deadline)); do sleep 0.5; done
  left=$(ours)
  [[ -z $left ]] || kill -KILL $left 2>/dev/null || true
  rm -f -- "$nodes" "$dir/dashboard"
  echo "stopped"
}

# Prints the remaining processes of this cluster: they have the path of the token in their environment and the folder in
# their arguments, unlike a shell that only uses the cluster.
ours() {
  local process pid
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    [[ $pid != "$$" ]] && alive "$pid" && tr '\0' ' ' <"$process/cmdline" | grep -qE "$dir/ray|^ray::" && echo "$pid"
  done 2>/dev/null || true # a process may end between two looks
}

status() {
  running || { echo "not running"; return 3; }
  local dashboard
  dashboard=$(cat "$dir/dashboard" 2>/dev/null || echo 8265)
  echo "running, dashboard http://127.0.0.1:$dashboard"
  next "$dashboard"
}

command=${1:-}
shift || true
case $command in
start) start "$@" ;;
stop) stop ;;
status) status ;;
*) usage ;;
esac
