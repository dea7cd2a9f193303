# shellcheck shell=bash
# The local cluster: every node a network namespace and a mount namespace of this machine, no container engine needed.
#
# Whatever belongs to it can be told from what does not, without any record that a crash could spoil:
#   processes    carry LB_SVC_PROCESS=<name> in their environment, or live in a cgroup lb-svc-n<i>
#   namespaces   are called lb-svc-*; the mounts of a node, and the namespaces of its pods, are seen by that node only
#   files        lie in $STATE

# shellcheck source=local-network.sh
. "$HERE/local-network.sh"
# shellcheck source=local-control-plane.sh
. "$HERE/local-control-plane.sh"
# shellcheck source=local-node.sh
. "$HERE/local-node.sh"

LOCK=/run/lock/lb-svc-cluster

verb_up() {
  need_root
  lock
  if healthy; then
    say "the cluster is up, with $(node_count) nodes"
    return
  fi
  local nodes=${NODES:-2}
  [[ $nodes =~ ^[1-4]$ ]] || die "NODES is 1 to 4, not '$nodes'"
  case $STATE/ in /run/* | /var/lib/* | /var/log/*) die "LB_SVC_STATE cannot lie in a directory that nodes have for themselves: $STATE" ;; esac
  [ -d "$BIN" ] || die "the cluster is not built: run '$0 build' first"
  clean_up
  trap 'give_up' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  bring_up "$nodes"
  trap - EXIT INT TERM
  say "the cluster is up"
}

bring_up() { # NODES
  local nodes i containerds kubelets
  nodes=$(seq "$1")
  mkdir -p "$STATE"/{log,pki}
  need_space
  echo "$1" >"$STATE/nodes"
  make_network
  for i in $nodes; do join_pod_networks "$i"; done
  say "network: a LAN with $1 nodes, a client, and a far host"
  make_certificates
  say "certificates"

  in_parallel start_containerd "$nodes" &
  containerds=$!
  start_etcd
  start_api_server
  say "the API server is ready"
  start_controllers
  wait "$containerds" || exit 1
  say "containerd runs on every node"
  in_parallel start_kubelet "$nodes" &
  kubelets=$!
  add_objects
  wait "$kubelets" || exit 1
  say "every node is Ready"
  await 30 kube-controller-manager "the default ServiceAccount" kubectl_admin get serviceaccount default
}

give_up() { # something failed and has said what
  say "could not bring the cluster up; cleaning"
  touch "$STATE/given-up" # what still runs in parallel stops at this
  wait
  clean_up
}

verb_down() {
  need_root
  lock
  local found="nothing was left"
  if [ -e "$STATE" ] || [ -n "$(processes)$(namespaces)$(node_cgroups)" ]; then found="the cluster is gone"; fi
  clean_up
  say "$found"
}

clean_up() {
  end_processes
  namespaces | xargs -r -n1 ip netns del
  remove_cgroups
  rm -rf "$STATE"
}

healthy() {
  local i name
  [ -f "$STATE/nodes" ] || return 1
  if [ -n "${NODES:-}" ] && [ "$NODES" != "$(node_count)" ]; then
    die "a cluster of $(node_count) nodes is here: take it down before you make one of $NODES"
  fi
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler; do runs "$name" || return 1; done
  for i in $(seq "$(node_count)"); do
    if is_off "$i"; then return 1; fi
    for name in node containerd kubelet kube-proxy; do runs "$name-n$i" || return 1; done
  done
  api_server_ready || return 1
  for i in $(seq "$(node_count)"); do node_ready "$i" || return 1; done
}

# --- verbs on a cluster that is up ---

verb_kubectl() { need_cluster; kubectl_admin "$@"; }
verb_kubeconfig() { echo "$STATE/kubeconfig"; }
verb_audit_log() { echo "$STATE/log/audit.log"; }
verb_logs() { echo "$STATE/log"; }
verb_runner() { echo "nsenter --net=/run/netns/lb-svc-${1:+n}${1:-client}"; }
verb_client() { need_cluster; in_net client "$@"; }
verb_far() { need_cluster; in_net far "$@"; }
verb_lan() { need_cluster; in_net lan "$@"; }
verb_node() { need_node "$@"; in_net "n$1" "${@:2}"; }
verb_kubelet_stop() { need_node "$@"; stop "kubelet-n$1"; }
verb_kubelet_start() { need_node "$@"; runs "kubelet-n$1" || start_kubelet "$1" "$(now)"; }
verb_images_on() { need_node "$@"; ctr_on "$1" images ls | awk 'NR > 1 && $1 !~ /^sha256:/ {print $1, $4 $5}'; }
verb_proxy_mode() {
  local i
  need_cluster
  case ${1:-} in iptables | nftables) ;; *) usage ;; esac
  echo "$1" >"$STATE/proxy-mode"
  for i in $(seq "$(node_count)"); do
    write_kube_proxy_config "$i"
    stop "kube-proxy-n$i"
    start_kube_proxy "$i"
  done
}
verb_node_stop() { need_node "$@"; [ "$1" != 1 ] || die "node 1 carries the control plane"; cut_off "$1"; }
verb_node_start() { need_node "$@"; if is_off "$1" || ! runs "node-n$1"; then plug_in "$1"; fi; }
verb_api_stop() { need_cluster; kill_until_gone processes kube-apiserver; }
verb_api_start() { need_cluster; runs kube-apiserver || start_api_server; }

verb_load() {
  local image
  need_cluster
  for image; do
    [ -f "$image" ] || die "no such image archive: $image"
    in_parallel "import $(printf %q "$(realpath "$image")")" "$(seq "$(node_count)")"
  done
}

verb_dump() {
  need_root
  [ -d "$STATE" ] || die "there is no cluster"
  local log
  dump_section nodes 20 kubectl_admin get nodes -o wide
  dump_section "taints of nodes" 20 kubectl_admin get nodes \
    -o 'jsonpath={range .items[*]}{.metadata.name} {.spec.taints}{"\n"}{end}'
  dump_section "memory of this machine" 20 free -m
  dump_section "disk of this machine" 20 df -m "$STATE"
  dump_section pods 60 kubectl_admin get pods -A -o wide
  dump_section "services and what this product makes of them" 60 \
    kubectl_admin get services,deployments,network-attachment-definitions -A -o wide
  dump_section "latest events" 40 kubectl_admin get events -A --sort-by=.lastTimestamp
  for log in "$STATE"/log/*.log; do
    case $log in */audit.log) continue ;; esac
    dump_section "$log" 12 grep -vE '^[IW][0-9]{4} |level=(info|debug|warning)| I \| | INFO: ' "$log"
  done
}

dump_section() { # TITLE LINES CMD...: the end of what CMD prints
  echo "--- $1"
  { "${@:3}" 2>&1 || true; } | tail -n "$2" | cut -c1-400
}

# --- what the parts share ---

need_root() { [ "$(id -u)" = 0 ] || die "the local cluster takes root"; }
need_cluster() { need_root; [ -f "$STATE/kubeconfig" ] || die "there is no cluster: run '$0 up' first"; }
# The images of the nodes, etcd and the logs of all suites take about 2 GiB.
need_space() {
  local free
  free=$(df --output=avail --block-size=1M "$STATE" | tail -n 1)
  ((free >= 3072)) || die "$STATE has $((free)) MiB left, a cluster takes 3072: free some space, or set LB_SVC_STATE"
}
need_node() { # N
  need_cluster
  [[ ${1:-} =~ ^[1-4]$ && ${1:-} -le $(node_count) ]] || die "name a node by its number, 1 to $(node_count)"
}
node_count() { cat "$STATE/nodes"; }

lock() { # one `up` or `down` at a time; the lock goes with this process
  exec 9>"$LOCK"
  flock --nonblock 9 && return
  say "waiting for another 'up' or 'down'"
  flock --timeout 180 9 || die "another 'up' or 'down' does not end; see who holds $LOCK"
}

spawn() { # NAME CMD...: start a process of the cluster, in a session of its own and without its caller's files
  local name=$1
  shift
  (
    for fd in /proc/"$BASHPID"/fd/*; do
      fd=${fd##*/}
      if ((fd > 2)); then exec {fd}>&-; fi
    done
    LB_SVC_PROCESS=$name exec setsid "$@" >>"$STATE/log/$name.log" 2>&1 </dev/null
  ) &
  until runs "$name" || ! kill -0 $! 2>/dev/null; do sleep 0.01; done # the mark shows once the program is loaded
  disown
}

processes() { # [NAME_PATTERN]: pids of the cluster's processes, their children included
  { grep -lzsE "^LB_SVC_PROCESS=(${1:-.*})$" /proc/[0-9]*/environ || true; } | cut -d/ -f3
}

# While the kernel loads another program into a process, its mark does not show: on a slow disk that takes a while. So
# only who is missed in so many looks, one after the other, is gone.
LOOKS=3

now() { date -u +%Y-%m-%dT%H:%M:%S; }
main_process() { processes "$1" | sort -n | head -n 1; }
runs() { [ -n "$(processes "$1")" ]; }

await() { # SECONDS PROCESS WHAT CMD...: until CMD succeeds; on failure show the log of PROCESS
  local limit=$((SECONDS + $1)) process=$2 what=$3 missed=0
  shift 3
  until ("$@") >/dev/null 2>&1; do
    if [ -e "$STATE/given-up" ] || ! kill -0 $$ 2>/dev/null; then exit 1; fi # the `up` around this has failed or was killed
    if runs "$process"; then
      missed=0
    elif ((++missed >= LOOKS)); then
      explain "$process" "$process has died while waiting for $what"
    fi
    [ "$SECONDS" -lt "$limit" ] || explain "$process" "waited in vain for $what"
    sleep 0.1
  done
}

explain() { # PROCESS MESSAGE
  {
    echo "cluster.sh: $2; the end of its log:"
    tail -n 20 "$STATE/log/$1.log" | cut -c1-300
  } >&2
  exit 1
}

in_parallel() { # "CMD ARGS" ITEMS: CMD for each item at once; fails if one does
  local item pid pids=()
  for item in $2; do
    eval "$1 $item" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || return 1; done
}

stop() { # NAME: with the chance to end by itself
  local pid
  pid=$(main_process "$1")
  [ -n "$pid" ] || return 0
  kill "$pid"
  for _ in $(seq 100); do
    runs "$1" || return 0
    sleep 0.1
  done
  processes "$1" | xargs -r kill -KILL 2>/dev/null || true
}

kill_until_gone() { # CMD...: CMD prints pids; kill them, and what they started meanwhile
  local pids missed=0
  for _ in $(seq 100); do
    pids=$("$@")
    if [ -n "$pids" ]; then missed=0; else ((++missed < LOOKS)) || return 0; fi
    # shellcheck disable=SC2086 # one argument for each process
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    sleep 0.05
  done
  die "these processes of the cluster do not end: $pids"
}

end_processes() { kill_until_gone all_processes; }
all_processes() { processes; cgroup_processes; }
