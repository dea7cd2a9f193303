#!/bin/bash
# Creates lb-svc's custom resources, or upgrades those of another release of it.
# A definition of the same name that is another's, such as Kube-OVN's, is left
# alone: replacing it would lose fields of all its objects.
#
#   KUBECTL="kubectl --context=…" manifests/crds/apply.sh
set -euo pipefail
cd "$(dirname "$0")/../../crds/yaml"
read -ra kubectl <<<"${KUBECTL:-kubectl}"

# The first release had no label: its own words tell it from others.
is_ours() { # NAME
  local found
  found=$("${kubectl[@]}" get crd "$1" --output \
    'jsonpath={.metadata.labels.app\.kubernetes\.io/managed-by}/{.spec.versions[0].schema.openAPIV3Schema.description}')
  [[ $found == lb-svc/* || $found == *"from which LoadBalancer Services get theirs."* \
    || $found == *"one Service's hold on one address of an attached network."* ]]
}

for file in subnets.yaml ips.yaml; do
  name=$(sed -n 's/^  name: //p' "$file" | head -n 1)
  if ! "${kubectl[@]}" get crd "$name" --output name >/dev/null 2>&1; then
    "${kubectl[@]}" create --filename "$PWD/$file"
  elif is_ours "$name"; then
    "${kubectl[@]}" replace --filename "$PWD/$file"
  else
    echo "$name exists and was not made by lb-svc (Kube-OVN?): it is left alone." >&2
    echo "lb-svc does not run beside Kube-OVN's own controllers; on another cluster, or after theirs are removed" >&2
    echo "with their CustomResourceDefinitions, run this again." >&2
    exit 1
  fi
done
