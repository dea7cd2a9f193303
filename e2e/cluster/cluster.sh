#!/bin/bash
# A Kubernetes cluster for the end-to-end tests, made from nothing but Debian packages and Go modules.
#
#   cluster.sh VERB [ARGS...]          CLUSTER=local (default) or kind, NODES=2 (local: 1 to 4)
#
#   deps                 install the packages that are missing; starts no service
#   build                build Kubernetes and Multus (kind: kind and Multus) into the cache, once
#   node-image           kind: make a node image, and fetch a Docker engine where none runs, once
#   has-node-image       kind: whether there is one
#   metallb              the same for MetalLB; print the directory with its programs and CRDs
#   helm                 the same for Helm and kustomize; print the directory with them
#   prometheus           fetch Prometheus and promtool into the cache, once; print the directory with them
#   release-before       build the release before into the cache, once; print the directory with its images and manifests
#   has-release-before   whether it is there
#   up                   bring the cluster up; says so and does nothing if it is up already
#   down                 end it and leave nothing behind, in whatever state it is
#   kubectl ARGS...      run kubectl as cluster admin
#   kubeconfig           print the path of the admin kubeconfig
#   load IMAGE.tar...    import image archives on every node
#   images-on N          list the images on node N
#   client CMD...        run a command on a host of the LAN that is no part of the cluster (172.18.0.9)
#   far CMD...           run a command on a host behind two routers and a narrow link (172.20.0.9)
#   lan CMD...           run a command on the LAN's switch: a bridge with a port for each node, of the node's name
#   node N CMD...        run a command in the network namespace of node N
#   runner [N]           print the command prefix that runs a program as the client, or on node N
#   kubelet-stop N       stop the kubelet of node N
#   kubelet-start N      start it again, and wait for the node to be Ready
#   proxy-mode MODE      local: start every kube-proxy anew in this mode, iptables or nftables (the default)
#   node-stop N          cut node N off as a power failure does: processes, containers and link (not node 1)
#   node-start N         start it again
#   api-stop             kill the API server
#   api-start            start it again, and wait for it to be ready
#   audit-log            print the path of the API server's audit log: every write, with its author
#   logs                 print the directory of the logs
#   dump                 print what a failure's reader wants to see
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # used by local.sh and kind.sh
STATE=${LB_SVC_STATE:-/var/tmp/lb-svc}        # everything that `down` removes
CACHE=${LB_SVC_CACHE:-$HOME/.cache/lb-svc}    # what outlives a cluster: built binaries
CLUSTER=${CLUSTER:-local}
BEGAN=${EPOCHREALTIME//[.,]/}

say() { # progress, with the seconds since the start
  local us=$((${EPOCHREALTIME//[.,]/} - BEGAN))
  printf '%4d.%d s  %s\n' $((us / 1000000)) $((us / 100000 % 10)) "$*" >&2
}
die() { echo "cluster.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$HERE/cluster.sh" >&2; exit 2; }

# shellcheck source=deps.sh
. "$HERE/deps.sh"
# shellcheck source=build.sh
. "$HERE/build.sh"
# shellcheck source=metallb.sh
. "$HERE/metallb.sh"
# shellcheck source=helm.sh
. "$HERE/helm.sh"
# shellcheck source=prometheus.sh
. "$HERE/prometheus.sh"
# shellcheck source=release-before.sh
. "$HERE/release-before.sh"
case $CLUSTER in
  local | kind) ;;
  *) die "CLUSTER is local or kind, not '$CLUSTER'" ;;
esac
# shellcheck source=local.sh
. "$HERE/$CLUSTER.sh"

[ $# -ge 1 ] || usage
verb=verb_${1//-/_}
declare -F "$verb" >/dev/null || usage
shift
"$verb" "$@"
