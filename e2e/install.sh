#!/bin/bash
# Installs the product, as built, on the cluster that is up.
set -euo pipefail
cd "$(dirname "$0")/.."
cluster=e2e/cluster/cluster.sh
kubectl() { "$cluster" kubectl "$@"; }

echo "loading the images" >&2
"$cluster" load target/images/{controller,gateway,backend,servers}.tar >/dev/null
echo "manifests/crds/apply.sh; kubectl apply -k manifests" >&2
KUBECTL="$PWD/$cluster kubectl" manifests/crds/apply.sh >/dev/null
if kubectl -n lb-svc-system get deployment lb-svc-controller >/dev/null 2>&1; then
  kubectl apply -k "$PWD/manifests" >/dev/null
  # An image that was built anew has its old name.
  kubectl -n lb-svc-system rollout restart deployment lb-svc-controller >/dev/null
else
  kubectl apply -k "$PWD/manifests" >/dev/null
fi
kubectl -n lb-svc-system rollout status deployment lb-svc-controller --timeout=60s >&2
kubectl apply -f "$PWD/manifests/examples/attachment.yaml" -f "$PWD/manifests/examples/subnet.yaml" >/dev/null
