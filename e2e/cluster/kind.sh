# shellcheck shell=bash
# The same verbs on kind, for machines with a Docker engine, and with one of our own for those without (kind-engine.sh).
# The nodes' docker network is the LAN. A network namespace with a port of its bridge is the client.
#
# KIND_NODE_IMAGE names the node image; else it is the one that `node-image` made, and where it made none, kind's own.
# KIND_RETAIN=1 leaves what a failed `up` has made, to look at; `down` removes it.

KIND_NAME=lb-svc
KIND_NETWORK=lb-svc # and the name of its bridge
CLIENT_NET=kind-lb-svc-client
STATE=$STATE-kind # beside the local cluster's

# shellcheck source=kind-engine.sh
. "$HERE/kind-engine.sh"
# shellcheck source=kind-image.sh
. "$HERE/kind-image.sh"

verb_up() {
  need_root
  kind_lock
  if healthy; then
    say "the cluster is up"
    return
  fi
  [ -d "$KIND_BIN" ] || die "the cluster is not built: run '$0 build' first"
  clean_up
  mkdir -p "$STATE"
  trap 'give_up' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  need_engine
  create_nodes
  make_client
  own_kubectl
  # kind waits for the control plane alone. Multus on a node without a pod network would have it called ready too early.
  kubectl_admin wait --for=condition=Ready nodes --all --timeout=180s >/dev/null
  kubectl_admin taint nodes --all node-role.kubernetes.io/control-plane- >/dev/null 2>&1 || true
  say "installing Multus"
  install_multus
  trap - EXIT INT TERM
  say "the cluster is up"
}

create_nodes() {
  local image=${KIND_NODE_IMAGE:-}
  if [ -z "$image" ] && verb_has_node_image; then
    image=$NODE_IMAGE
    if ! docker image inspect "$image" >/dev/null 2>&1; then
      say "loading the node image"
      docker load --quiet --input "$NODE_DIR/node.tar" >/dev/null
    fi
  fi
  # The range keeps the nodes within 172.18.0.2 to .6, clear of the client and of the addresses that Services are given.
  docker network create --subnet 172.18.0.0/16 --gateway 172.18.0.1 --ip-range 172.18.0.0/29 \
    --opt "com.docker.network.bridge.name=$KIND_NETWORK" "$KIND_NETWORK" >/dev/null ||
    die "the network 172.18.0.0/16 cannot be made; if kind's own network 'kind' has it: docker network rm kind"
  say "creating the nodes"
  KIND_EXPERIMENTAL_DOCKER_NETWORK=$KIND_NETWORK kind create cluster --name "$KIND_NAME" --kubeconfig "$(verb_kubeconfig)" \
    ${image:+--image "$image"} ${KIND_RETAIN:+--retain} --wait 180s --config - 2>&1 <<END | tee "$STATE/create.log" >&2 || no_nodes
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
END
}

no_nodes() {
  if grep -q 'failed to pull image' "$STATE/create.log"; then
    die "the node image is not here and cannot be pulled: name one with KIND_NODE_IMAGE, or make one: 'make kind-image'"
  fi
  die "kind could not create the nodes"
}

# Also the parts that `up` installs last: one that was killed before has left a cluster without them.
healthy() {
  local node
  [ -x "$STATE/kubectl" ] && [ -e "/run/netns/$CLIENT_NET" ] && [ "$(kind_nodes | wc -l)" = 3 ] &&
    kubectl_admin get --raw /readyz >/dev/null 2>&1 &&
    kubectl_admin wait --for=condition=Ready nodes --all --timeout=1s >/dev/null 2>&1 || return 1
  for node in $(kind_nodes); do
    docker exec "$node" sh -c 'test -x /opt/cni/bin/multus && test -x /opt/cni/bin/macvlan &&
      test -s /etc/cni/net.d/00-multus.conf' >/dev/null 2>&1 || return 1
  done
}

give_up() {
  if [ -n "${KIND_RETAIN:-}" ]; then
    say "could not bring the cluster up; what there is of it stays (KIND_RETAIN): see '$0 dump' and '$0 logs'"
  else
    say "could not bring the cluster up; cleaning (KIND_RETAIN=1 leaves it to look at)"
    clean_up
  fi
}

kind_lock() { # one `up` or `down` at a time; the lock goes with this process
  exec 9>"/run/lock/lb-svc-kind"
  flock --nonblock 9 && return
  say "waiting for another 'up' or 'down' to end"
  flock --timeout 300 9 || die "another 'up' or 'down' does not end"
}

verb_down() {
  need_root
  kind_lock
  clean_up
  say "the cluster is gone"
}

clean_up() {
  if [ -e "/run/netns/$CLIENT_NET" ]; then ip netns del "$CLIENT_NET"; fi
  if engine_answers; then
    kind_nodes | xargs -r docker rm --force --volumes >/dev/null
    if docker network inspect "$KIND_NETWORK" >/dev/null 2>&1; then docker network rm "$KIND_NETWORK" >/dev/null; fi
  fi
  end_engine # if it is our own: with all that it has, whatever state it is in
  rm -rf "$STATE"
}

# --- the LAN ---

make_client() {
  local node
  ip netns add "$CLIENT_NET"
  ip -n "$CLIENT_NET" link set lo up
  in_engine_net ip link add kind-client type veth peer name eth0 netns "$CLIENT_NET"
  in_engine_net ip link set kind-client master "$KIND_NETWORK" up
  ip -n "$CLIENT_NET" link set eth0 up
  ip -n "$CLIENT_NET" addr add 172.18.0.9/16 dev eth0
  ip -n "$CLIENT_NET" route add default via 172.18.0.1
  for node in $(kind_nodes); do name_port "$node"; done
}

# A node's port of the bridge is named by the engine; beside that name it gets the node's.
name_port() { # NODE_NAME
  local index port
  index=$(docker exec "$1" cat /sys/class/net/eth0/iflink)
  port=$(in_engine_net ip -o link | awk -F'[:@] *' -v index_="$index" '$1 == index_ {print $2}')
  in_engine_net ip link property add dev "$port" altname "$1"
}

# The client reaches the API server where the nodes do, whatever address the first of them got.
own_kubectl() {
  docker cp --follow-link "$KIND_NAME-control-plane:/usr/bin/kubectl" "$STATE/kubectl" >/dev/null 2>&1
  "$STATE/kubectl" --kubeconfig "$(verb_kubeconfig)" config set-cluster "kind-$KIND_NAME" \
    --server="https://$(node_address "$KIND_NAME-control-plane"):6443" >/dev/null
}

node_address() { # NODE_NAME
  docker inspect --format "{{(index .NetworkSettings.Networks \"$KIND_NETWORK\").IPAddress}}" "$1"
}

# Multus and the macvlan plugin go beside kind's own plugins. Multus' configuration sorts before kind's, and names it
# as the pod network.
install_multus() {
  local node token
  kubectl_admin apply -f "$HERE/manifests/nad-crd.yaml" -f "$HERE/manifests/multus-rbac.yaml" >/dev/null
  token=$(kubectl_admin -n kube-system create token multus --duration=8760h)
  for node in $(kind_nodes); do
    docker cp "$KIND_BIN/multus" "$node:/opt/cni/bin/multus" >/dev/null 2>&1
    docker cp "$KIND_BIN/macvlan" "$node:/opt/cni/bin/macvlan" >/dev/null 2>&1
    docker exec -i "$node" sh -c 'mkdir -p /etc/cni/net.d/multus.d && cat >/etc/cni/net.d/multus.d/kubeconfig' <<END
apiVersion: v1
kind: Config
current-context: multus
contexts: [{name: multus, context: {cluster: $KIND_NAME, user: multus}}]
clusters:
  - name: $KIND_NAME
    cluster: {server: "https://$KIND_NAME-control-plane:6443", certificate-authority: /etc/kubernetes/pki/ca.crt}
users: [{name: multus, user: {token: "$token"}}]
END
    # Written aside and renamed: containerd must not read half a file. The pod network is named, not given by the path of
    # its file: of a .conflist Multus 4.2 loses the ranges at deletion, and no pod ever ends (Multus issue 1449).
    docker exec -i "$node" sh -c 'cat >/etc/cni/net.d/multus.tmp && mv /etc/cni/net.d/multus.tmp /etc/cni/net.d/00-multus.conf' <<END
{
  "cniVersion": "0.3.1",
  "name": "multus",
  "type": "multus",
  "kubeconfig": "/etc/cni/net.d/multus.d/kubeconfig",
  "confDir": "/etc/cni/net.d",
  "binDir": "/opt/cni/bin",
  "namespaceIsolation": true,
  "globalNamespaces": "kube-system",
  "clusterNetwork": "kindnet"
}
END
  done
}

# --- verbs on a cluster that is up ---

verb_kubectl() { need_cluster; kubectl_admin "$@"; }
verb_kubeconfig() { echo "$STATE/kubeconfig"; }
verb_client() { need_cluster; nsenter --net="/run/netns/$CLIENT_NET" "$@"; }
verb_lan() { need_cluster; in_engine_net "$@"; }
verb_node() { docker exec "$(node_name "$@")" "${@:2}"; }
verb_images_on() { verb_node "$1" ctr --namespace k8s.io images ls | awk 'NR > 1 && $1 !~ /@?sha256:/ {print $1, $4 $5}'; }
verb_kubelet_stop() { verb_node "$1" systemctl stop kubelet; }
verb_kubelet_start() { verb_node "$1" systemctl start kubelet; await_ready "$(node_name "$1")" "$(now)"; }

verb_runner() {
  local net=/run/netns/$CLIENT_NET
  need_cluster
  [ $# = 0 ] || net=/proc/$(docker inspect --format '{{.State.Pid}}' "$(node_name "$1")")/ns/net
  echo "nsenter --net=$net"
}

verb_load() {
  local image
  for image; do kind load image-archive --name "$KIND_NAME" "$image"; done
}

# As a power failure does: its link and all of its processes at once. What is frozen does no more than what is dead.
verb_node_stop() {
  local node
  node=$(node_name "$@")
  [ "$1" != 1 ] || die "node 1 carries the control plane"
  in_engine_net ip link set "$node" down
  docker pause "$node" >/dev/null
}

verb_node_start() { # it boots with the disk it had, and without pods or their networks
  local node since
  node=$(node_name "$@")
  [ "$(docker inspect --format '{{.State.Status}}' "$node")" != running ] || return 0
  since=$(now)
  docker kill "$node" >/dev/null
  docker start "$node" >/dev/null
  name_port "$node"
  await_ready "$node" "$since"
}

# A static pod goes with its manifest, but in its own time.
verb_api_stop() {
  verb_node 1 sh -c 'mv /etc/kubernetes/manifests/kube-apiserver.yaml /etc/kubernetes/ && pkill -KILL -x kube-apiserver'
}

verb_api_start() {
  verb_node 1 sh -c 'cd /etc/kubernetes && if [ -e kube-apiserver.yaml ]; then mv kube-apiserver.yaml manifests/; fi'
  await 120 "the API server" kubectl_admin get --raw /readyz
}

verb_dump() { # by the node's own kubectl: what `up` could not finish has no other
  local of
  docker ps --all
  for of in "nodes -o wide" "pods -A -o wide" "services -A" "events -A --sort-by=.lastTimestamp"; do
    # shellcheck disable=SC2086 # a kind and its options
    verb_node 1 kubectl --kubeconfig /etc/kubernetes/admin.conf get $of | tail -n 60
  done
}

verb_logs() {
  mkdir -p "$STATE/log"
  kind export logs --quiet --name "$KIND_NAME" "$STATE/log" 2>"$STATE/log/missing.txt" || say "missing.txt says what is not there"
  echo "$STATE/log"
}

verb_far() { local_only; }
verb_audit_log() { local_only; }

local_only() {
  local verb=${FUNCNAME[1]#verb_}
  echo "cluster.sh: '${verb//_/-}' is only on the local cluster (CLUSTER=local)" >&2
  exit 3
}

# --- what the parts share ---

need_root() { [ "$(id -u)" = 0 ] || die "the cluster on kind takes root"; }
need_cluster() { need_root; [ -x "$STATE/kubectl" ] || die "there is no cluster: run '$0 up' first"; }
kubectl_admin() {
  KUBECACHEDIR=$STATE/kubectl-cache nsenter --net="/run/netns/$CLIENT_NET" \
    "$STATE/kubectl" --kubeconfig "$(verb_kubeconfig)" "$@"
}
# By the label that kind gives them: `down` needs no kind, which may not be built here or be another version's.
kind_nodes() { docker ps --all --filter "label=io.x-k8s.kind.cluster=$KIND_NAME" --format '{{.Names}}' | sort; }
now() { date -u +%Y-%m-%dT%H:%M:%S; }

await() { # SECONDS WHAT CMD...: until CMD succeeds
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$limit" ] || die "waited in vain for $what"
    sleep 0.2
  done
}

# A node that comes back is Ready only once its kubelet has renewed its lease: until the grace period ends, the API
# server goes by what the kubelet said before.
await_ready() { # NODE_NAME SINCE
  await 120 "$1 to be Ready" ready_since "$@"
}

ready_since() { # NODE_NAME SINCE
  local renewed
  kubectl_admin wait --for=condition=Ready "node/$1" --timeout=1s || return 1
  renewed=$(kubectl_admin -n kube-node-lease get lease "$1" -o 'jsonpath={.spec.renewTime}') || return 1
  [[ "$renewed" > "$2" ]]
}

node_name() { # N: 1 is the control plane
  case ${1:-} in
    1) echo "$KIND_NAME-control-plane" ;;
    2) echo "$KIND_NAME-worker" ;;
    3) echo "$KIND_NAME-worker2" ;;
    *) die "name a node by its number, 1 to 3" ;;
  esac
}
