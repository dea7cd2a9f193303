# shellcheck shell=bash
# Helm and kustomize, by which the chart and the manifests are tested: built once per version into the cache, like the
# cluster's binaries. Not in build.sh, whose every change builds the cluster anew.

verb_helm() {
  local inputs dir
  inputs=$(cat "$HERE"/helm/* "$HERE/helm.sh" | sha256sum | cut -c1-12)
  dir=$CACHE/helm-$inputs
  once "$dir" with_heartbeat "Helm and kustomize (about 3 minutes, once)" build_helm
  echo "$dir"
}

# Helm renders for the version of Kubernetes that it is told here, where there is no cluster to ask.
build_helm() { # OUT_DIR
  local module=helm.sh/helm/v3 flags="-s -w" package
  for package in chartutil lint/rules; do
    flags+=" -X $module/pkg/$package.k8sVersionMajor=1 -X $module/pkg/$package.k8sVersionMinor=34"
  done
  go_build "$HERE/helm" "$1/helm" "$flags" $module/cmd/helm || return 1
  go_build "$HERE/helm" "$1/kustomize" "-s -w" sigs.k8s.io/kustomize/kustomize/v5
}
