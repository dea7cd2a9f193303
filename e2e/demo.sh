#!/bin/bash
# The main job, on a cluster of its own: from kubectl apply to curl, and what the gateway did for it.
# The cluster stays up; `make demo-down` ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
cluster=e2e/cluster/cluster.sh
kubectl() { "$cluster" kubectl "$@"; }
step() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
show() { printf '\033[1m$ %s\033[0m\n' "$*"; "$@"; }
gateway() { # COMMAND...: in the gateway pod
  printf '\033[1m$ kubectl exec deploy/lb-svc-test-service -- %s\033[0m\n' "$*"
  kubectl exec deploy/lb-svc-test-service -- "$@"
}

step "A cluster, and on the LAN of its nodes a client that is no part of it"
"$cluster" up
e2e/install.sh

step "An attachment, a Subnet, a workload, a Service"
show kubectl apply -k "$PWD/e2e/examples"
kubectl rollout status deployment dynamic --timeout=60s >/dev/null
kubectl wait --for=jsonpath='{.status.loadBalancer.ingress[0].ip}'=172.18.0.18 service test-service --timeout=60s >/dev/null

step "What came of it"
show kubectl get service,pod,ip,subnet -o wide
gateway ip rule
gateway ip route show table 100
gateway iptables -t nat -S
show kubectl get events --field-selector involvedObject.kind=Service -o custom-columns=TYPE:.type,REASON:.reason,MESSAGE:.message

step "And from the client outside"
answers=$(for _ in 1 2 3 4 5 6 7 8; do "$cluster" client curl -sS --max-time 5 http://172.18.0.18/; done)
printf '\033[1m$ curl http://172.18.0.18/    (eight times)\033[0m\n%s\n' "$answers"
[ "$(awk '{print $1}' <<<"$answers" | sort -u | wc -l)" = 2 ] || { "$cluster" dump >&2; echo "demo: not both backends answered" >&2; exit 1; }

step "It works. To look around: $cluster kubectl get all -A;  to end it: make demo-down"
