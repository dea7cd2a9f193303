# shellcheck shell=bash
# The binaries of the cluster, built once per version into the cache, outside the checkout. The directory is named
# after everything that goes into it, and appears complete or not at all.

KUBERNETES_VERSION=1.34.2
MULTUS_VERSION=4.2.3

build_inputs() { cat "$HERE"/kubernetes/* "$HERE"/multus/* "$HERE/pause.c" "$HERE/build.sh" "$HERE/../image.sh"; }
BIN=$CACHE/cluster-$(build_inputs | sha256sum | cut -c1-12)
export PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin:$PATH

verb_build() {
  [ -d "$BIN" ] && return
  mkdir -p "$CACHE"
  (
    flock 8
    [ ! -d "$BIN" ] || exit 0 # another build was faster
    rm -rf "$CACHE"/.building-* # left by one that was killed
    work=$(mktemp -d "$CACHE/.building-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    go_toolchain "$work"
    with_heartbeat "Kubernetes $KUBERNETES_VERSION (about 6 minutes, once)" build_kubernetes "$work"
    with_heartbeat "Multus $MULTUS_VERSION (about a minute, once)" build_multus "$work"
    build_pause "$work"
    chmod 755 "$work"
    mv "$work" "$BIN"
    say "built: $BIN"
  ) 8>"$CACHE/lock"
}

build_kubernetes() { # OUT_DIR
  local name flags="-s -w"
  local version=k8s.io/component-base/version client=k8s.io/client-go/pkg/version
  for name in "$version" "$client"; do
    flags+=" -X $name.gitVersion=v$KUBERNETES_VERSION -X $name.gitMajor=1 -X $name.gitMinor=34"
    flags+=" -X $name.gitTreeState=clean -X $name.gitCommit=unknown"
  done
  go_build kubernetes "$1/kube" "$flags" .
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -s kube "$1/$name"
  done
}

build_multus() { # OUT_DIR
  go_build multus "$1/multus" "-s -w" gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus
}

build_pause() { # OUT_DIR
  mkdir "$1/rootfs"
  gcc -static -O2 -s -o "$1/rootfs/pause" "$HERE/pause.c"
  "$HERE/../image.sh" localhost/pause:1 "$1/rootfs" "$1/pause.tar" --entrypoint '["/pause"]'
  rm -r "$1/rootfs"
}

go_build() { # MODULE OUT LDFLAGS PACKAGE
  (cd "$HERE/$1" && CGO_ENABLED=0 GOFLAGS='' GOWORK=off go build -trimpath -buildvcs=false -ldflags "$3" -o "$2" "$4")
}

# Any Go from 1.24 on will do. Debian 12 has an older one: there the toolchain comes from where the modules come from.
GO_VERSION=1.24.9
GO_SHA256=2a683c9c1d65a0e221519c21850a3ed5fe5ff287d39d74e35e4af7ceb9e333b2 # linux-amd64

go_toolchain() { # WORK_DIR
  local minor dir="$CACHE/go$GO_VERSION" proxy name
  type -P go >/dev/null || die "building the cluster takes Go: install it and put it in PATH"
  minor=$(go env GOVERSION | cut -d. -f2)
  [ "$minor" -lt 24 ] || return 0
  proxy=$(go env GOPROXY)
  if [ ! -d "$dir" ]; then
    [ "$(uname -m)" = x86_64 ] || die "building the cluster takes Go 1.24 or later: install it and put it in PATH"
    say "fetching Go $GO_VERSION"
    name=v0.0.1-go$GO_VERSION.linux-amd64
    curl -sSfL -o "$1/go.zip" "${proxy%%[,|]*}/golang.org/toolchain/@v/$name.zip"
    echo "$GO_SHA256  $1/go.zip" | sha256sum --check --quiet
    unzip -q "$1/go.zip" -d "$1/go"
    chmod -R +x "$1/go/golang.org/toolchain@$name"/{bin,pkg/tool}
    mv "$1/go/golang.org/toolchain@$name" "$dir"
    rm -r "$1/go.zip" "$1/go"
  fi
  export PATH=$dir/bin:$PATH
}

with_heartbeat() { # WHAT CMD...: run CMD, with a sign of life every half minute
  local what=$1 began=$SECONDS pid
  shift
  say "building $what"
  "$@" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    [ $(((SECONDS - began) % 30)) != 0 ] || say "  still building, $((SECONDS - began)) s"
  done
  wait "$pid" || die "could not build $what"
}
