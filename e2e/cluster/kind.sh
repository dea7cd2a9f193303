# shellcheck shell=bash
# The same verbs on kind, for machines with a Docker engine. The nodes' docker network is the LAN, and this machine,
# which is its gateway, plays the client.

#
# KIND_NODE_IMAGE names the node image, where kind's own cannot be had or another Kubernetes is wanted. KIND_RETAIN=1
# leaves what a failed `up` has made, to look at; `down` removes it.

KIND_NAME=lb-svc
KIND_NETWORK=lb-svc

verb_up() {
  need_commands
  [ -d "$BIN" ] || die "Multus is not built: run '$0 build' first"
  kind_lock
  if healthy; then
    say "the cluster is up"
    return
  fi
  clean_up
  mkdir -p "$STATE/kind"
  trap 'give_up' EXIT
  # The range keeps the nodes within 172.18.0.2 to .6, clear of the addresses that Services are given.
  docker network create --subnet 172.18.0.0/16 --gateway 172.18.0.1 --ip-range 172.18.0.0/29 "$KIND_NETWORK" >/dev/null ||
    die "the network 172.18.0.0/16 cannot be made; if kind's own network 'kind' has it: docker network rm kind"
  say "creating the nodes"
  KIND_EXPERIMENTAL_DOCKER_NETWORK=$KIND_NETWORK kind create cluster --name "$KIND_NAME" --kubeconfig "$(verb_kubeconfig)" \
    ${KIND_NODE_IMAGE:+--image "$KIND_NODE_IMAGE"} ${KIND_RETAIN:+--retain} --wait 180s --config - >&2 <<END
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
END
  # kind waits for the control plane alone. Multus on a node without a pod network would have it called ready too early.
  kubectl_admin wait --for=condition=Ready nodes --all --timeout=180s >/dev/null
  kubectl_admin taint nodes --all node-role.kubernetes.io/control-plane- >/dev/null 2>&1 || true
  say "installing Multus"
  install_multus
  trap - EXIT
  say "the cluster is up"
}

# Also the parts that `up` installs last: one that was killed before has left a cluster without them.
healthy() {
  local node
  [ "$(kind_nodes | wc -l)" = 3 ] && [ -f "$(verb_kubeconfig)" ] && kubectl_admin get --raw /readyz >/dev/null 2>&1 &&
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
  need_commands
  kind_lock
  clean_up
  say "the cluster is gone"
}

clean_up() {
  kind delete cluster --quiet --name "$KIND_NAME" --kubeconfig "$(verb_kubeconfig)"
  if docker network inspect "$KIND_NETWORK" >/dev/null 2>&1; then docker network rm "$KIND_NETWORK" >/dev/null; fi
  rm -rf "$STATE/kind"
}

# Multus and the macvlan plugin go beside kind's own plugins. Multus' configuration sorts before kind's, and names it
# as the pod network.
install_multus() {
  local node token
  kubectl_admin apply -f "$HERE/manifests/nad-crd.yaml" -f "$HERE/manifests/multus-rbac.yaml" >/dev/null
  token=$(kubectl_admin -n kube-system create token multus --duration=8760h)
  for node in $(kind_nodes); do
    docker cp "$BIN/multus" "$node:/opt/cni/bin/multus" >/dev/null 2>&1
    docker cp "$CNI_PLUGINS/macvlan" "$node:/opt/cni/bin/macvlan" >/dev/null 2>&1
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

verb_kubectl() { kubectl_admin "$@"; }
verb_kubeconfig() { echo "$STATE/kind/kubeconfig"; }
verb_client() { "$@"; }
verb_runner() { [ $# = 0 ] || local_only; echo; }
verb_node() { docker exec "$(node_name "$@")" "${@:2}"; }
verb_images_on() { verb_node "$1" crictl images; }
verb_kubelet_stop() { verb_node "$1" systemctl stop kubelet; }

verb_kubelet_start() {
  verb_node "$1" systemctl start kubelet
  kubectl_admin wait --for=condition=Ready "node/$(node_name "$1")" --timeout=60s
}

verb_load() {
  local image
  for image; do kind load image-archive --name "$KIND_NAME" "$image"; done
}

verb_dump() {
  kubectl_admin get nodes -o wide
  kubectl_admin get pods -A -o wide
  kubectl_admin get events -A --sort-by=.lastTimestamp | tail -n 40
}

verb_logs() {
  mkdir -p "$STATE/kind/log"
  kind export logs --name "$KIND_NAME" "$STATE/kind/log" >/dev/null
  echo "$STATE/kind/log"
}

verb_far() { local_only; }
verb_lan() { local_only; }
verb_audit_log() { local_only; }
verb_node_stop() { local_only; }
verb_node_start() { local_only; }
verb_api_stop() { local_only; }
verb_api_start() { local_only; }

local_only() {
  local verb=${FUNCNAME[1]#verb_}
  echo "cluster.sh: '${verb//_/-}' is only on the local cluster (CLUSTER=local)" >&2
  exit 3
}

need_commands() {
  local command
  for command in docker kind; do
    type -P "$command" >/dev/null || die "CLUSTER=kind takes '$command', which is not installed"
  done
  docker info >/dev/null 2>&1 || die "there is no Docker engine to talk to"
}

kubectl_admin() { kubectl --kubeconfig "$(verb_kubeconfig)" "$@"; }
kind_nodes() { kind get nodes --quiet --name "$KIND_NAME"; }

node_name() { # N: 1 is the control plane
  case ${1:-} in
    1) echo "$KIND_NAME-control-plane" ;;
    2) echo "$KIND_NAME-worker" ;;
    3) echo "$KIND_NAME-worker2" ;;
    *) die "name a node by its number, 1 to 3" ;;
  esac
}
