# shellcheck shell=bash
# The binaries of the cluster, built once per version into the cache, outside the checkout. The directory is named
# after everything that goes into it, and appears complete or not at all.

KUBERNETES_VERSION=1.34.2
MULTUS_VERSION=4.2.3

build_inputs() { cat "$HERE"/kubernetes/* "$HERE"/multus/* "$HERE/pause.c" "$HERE/build.sh" "$HERE/../image.sh"; }
BIN=$CACHE/cluster-$(build_inputs | sha256sum | cut -c1-12)
export PATH=$BIN:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin:$PATH

verb_build() { once "$BIN" build_cluster; }

once() { # DIR CMD...: unless DIR is there, it becomes what CMD leaves in the directory that it is called with
  [ -d "$1" ] && return
  mkdir -p "$CACHE"
  (
    flock 8
    [ ! -d "$1" ] || exit 0 # another build was faster
    rm -rf "$CACHE"/.building-* # left by one that was killed
    work=$(mktemp -d "$CACHE/.building-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    go_toolchain "$work"
    "${@:2}" "$work"
    chmod 755 "$work"
    mv "$work" "$1"
    say "built: $1"
  ) 8>"$CACHE/lock"
}

build_cluster() { # OUT_DIR
  with_heartbeat "Kubernetes $KUBERNETES_VERSION (about 7 minutes, once)" build_kubernetes "$1"
  with_heartbeat "Multus $MULTUS_VERSION (about a minute, once)" build_multus "$1"
  build_pause "$1"
}

build_kubernetes() { # OUT_DIR
  local name flags="-s -w"
  local version=k8s.io/component-base/version client=k8s.io/client-go/pkg/version
  for name in "$version" "$client"; do
    flags+=" -X $name.gitVersion=v$KUBERNETES_VERSION -X $name.gitMajor=1 -X $name.gitMinor=34"
    flags+=" -X $name.gitTreeState=clean -X $name.gitCommit=unknown"
  done
  go_build "$HERE/kubernetes" "$1/kube" "$flags" .
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
    ln -s kube "$1/$name"
  done
}

build_multus() { # OUT_DIR
  go_build "$HERE/multus" "$1/multus" "-s -w" gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/multus
}

build_pause() { # OUT_DIR
  mkdir "$1/rootfs"
  gcc -static -O2 -s -o "$1/rootfs/pause" "$HERE/pause.c"
  "$HERE/../image.sh" localhost/pause:1 "$1/rootfs" "$1/pause.tar" --entrypoint '["/pause"]'
  rm -r "$1/rootfs"
}

# What nobody looks at with a debugger needs no notes for one, and two compilers at a time have memory enough to
# collect garbage seldom: together a tenth of the time.
go_build() { # MODULE_DIR OUT LDFLAGS PACKAGE
  GOGC=400 CGO_ENABLED=0 GOFLAGS='' GOWORK=off \
    go build -C "$1" -trimpath -buildvcs=false -gcflags=all=-dwarf=false -ldflags "$3" -o "$2" "$4"
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
