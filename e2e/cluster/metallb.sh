# shellcheck shell=bash
# MetalLB, to be measured beside: built once per version into the cache, like the cluster's binaries. The module is
# built as it is, so its dependencies are those it was released with. Not in build.sh, whose every change builds the
# cluster anew.

METALLB_VERSION=0.15.2
METALLB_SUM=h1:r7KDgJtk3KZe3qb36zRVrVCYHxLR03nPGT+qFXOomJM=

verb_metallb() {
  local dir=$CACHE/metallb-$METALLB_VERSION
  once "$dir" with_heartbeat "MetalLB $METALLB_VERSION (about 3 minutes, once)" build_metallb
  echo "$dir"
}

build_metallb() { # OUT_DIR
  local module source name
  module=$(GOFLAGS='' GOWORK=off go mod download -json "go.universe.tf/metallb@v$METALLB_VERSION") || return 1
  [ "$(jq -r .Sum <<<"$module")" = "$METALLB_SUM" ] || die "this is not MetalLB $METALLB_VERSION: $module"
  source=$(jq -r .Dir <<<"$module")
  for name in controller speaker; do
    go_build "$source" "$1/$name" "-s -w" "./$name" || return 1
  done
  cp "$source"/config/crd/bases/*.yaml "$1/"
  chmod 644 "$1"/*.yaml
}
