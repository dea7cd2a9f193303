# shellcheck shell=bash
# What the cluster on kind is made of, built once per version into the cache: kind and the plugins that go on its nodes;
# and, where no registry has one for us, a node image, from Debian packages and Go modules alone.

kind_inputs() { cat "$HERE"/kind/{go.mod,go.sum,tools.go} "$HERE"/multus/* "$HERE/build.sh" "$HERE/kind-image.sh"; }
node_inputs() { kind_inputs && build_inputs && cat "$HERE"/kind/{containerd.sed,entrypoint.sh} "$HERE"/kind/kindnet/*; }
KIND_BIN=$CACHE/kind-$(kind_inputs | sha256sum | cut -c1-12)
NODE_TAG=$(node_inputs | sha256sum | cut -c1-12)
NODE_IMAGE=localhost/lb-svc-node:$NODE_TAG
NODE_DIR=$CACHE/kind-node-$NODE_TAG
# What the containers of the node image are made of. Its other names are kubeadm's.
PARTS_IMAGE=localhost/lb-svc-node-parts:1
export PATH=$KIND_BIN:$PATH

verb_build() { once "$KIND_BIN" build_kind; }

build_kind() { # OUT_DIR
  with_heartbeat "kind (about a minute, once)" go_build "$HERE/kind" "$1/kind" "-s -w" sigs.k8s.io/kind
  with_heartbeat "Multus $MULTUS_VERSION (about a minute, once)" build_multus "$1"
  with_heartbeat "the macvlan plugin" go_build "$HERE/kind" "$1/macvlan" "-s -w" \
    github.com/containernetworking/plugins/plugins/main/macvlan
}

verb_has_node_image() { [ -d "$NODE_DIR" ]; }

verb_node_image() {
  [ "$(id -u)" = 0 ] || die "making the node image takes root"
  install_missing needs_node_image
  once "$KIND_BIN" build_kind
  once "$BIN" build_cluster
  once "$NODE_DIR" build_node
  if ! engine_answers; then once "$ENGINE" fetch_engine; fi
  say "the node image is $NODE_DIR/node.tar"
}

build_node() { # OUT_DIR
  local out=$1 root=$1/rootfs parts=$1/parts
  with_heartbeat "etcd (about a minute, once)" go_build "$HERE/kind" "$out/etcd" "-s -w" go.etcd.io/etcd/server/v3
  with_heartbeat "kubeadm (about a minute, once)" build_kubeadm "$out/kubeadm"
  with_heartbeat "a file system from Debian packages (about two minutes, once)" bootstrap "$root"
  install_kind_files "$root"
  install_programs "$root" "$out/kubeadm"
  pack_parts "$root" "$parts" "$out/etcd"
  "$HERE/../image.sh" "$PARTS_IMAGE" "$parts" "$root/parts.tar"
  cp "$BIN/pause.tar" "$root/pause.tar"
  import_images "$root"
  rm -rf "$root"/{parts,pause}.tar "$root"/run/* "$root"/tmp/*
  say "packing the node image"
  # systemd looks for the variable to know that it is in a container.
  "$HERE/../image.sh" "$NODE_IMAGE" "$root" "$out/node.tar" \
    --entrypoint '["/usr/bin/env", "container=docker", "/kind/entrypoint.sh"]'
  rm -r "$root" "$parts" "$out/etcd" "$out/kubeadm"
}

build_kubeadm() { # OUT
  local version=k8s.io/component-base/version
  go_build "$HERE/kubernetes" "$1" "-s -w -X $version.gitVersion=v$KUBERNETES_VERSION -X $version.gitMajor=1 \
    -X $version.gitMinor=34 -X $version.gitTreeState=clean" k8s.io/kubernetes/cmd/kubeadm
}

bootstrap() { # ROOT
  local packages=(
    systemd dbus # what the node runs
    containerd runc containernetworking-plugins
    iptables nftables iproute2 conntrack ethtool kmod mount procps # what Kubernetes calls
    curl jq ca-certificates iputils-ping # what kind and the tests call
  )
  mmdebstrap --quiet --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    bookworm "$1" >&2
}

# The entrypoint and the units of a kind node, from kind's own module; the steps are those of its base image.
install_kind_files() { # ROOT
  local root=$1 from
  from=$(GOWORK=off go list -C "$HERE/kind" -m -f '{{.Dir}}' sigs.k8s.io/kind)/images/base/files
  # Settings of the kernel are the machine's, not a node's.
  rm -f "$root"/etc/sysctl.d/* "$root"/usr/lib/sysctl.d/*
  rm -f "$root"/{etc,lib}/systemd/system/multi-user.target.wants/* "$root"/etc/systemd/system/*.wants/* \
    "$root"/lib/systemd/system/local-fs.target.wants/* "$root"/lib/systemd/system/basic.target.wants/* \
    "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}* \
    "$root"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service
  cp -r --no-preserve=mode,ownership "$from/." "$root/"
  cp "$HERE/kind/entrypoint.sh" "$root/kind/"
  chmod 755 "$root"/usr/local/bin/* "$root"/kind/bin/*
  echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
  ln -sf /lib/systemd/systemd "$root/sbin/init"
  chroot "$root" systemctl --quiet enable kubelet containerd undo-mount-hacks
  chroot "$root" systemctl --quiet mask systemd-binfmt # what it registers is the whole kernel's
  sed -i -f "$HERE/kind/containerd.sed" "$root/etc/containerd/config.toml"
  chroot "$root" ctr oci spec |
    jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
      >"$root/etc/containerd/cri-base.json"
}

install_programs() { # ROOT KUBEADM
  local root=$1 program
  cp "$BIN/kube" "$2" "$root/usr/bin/"
  for program in kubelet kubectl; do ln -s kube "$root/usr/bin/$program"; done
  for program in containerd ctr containerd-shim-runc-v2; do ln -s "/usr/bin/$program" "$root/usr/local/bin/"; done
  mkdir -p "$root"/opt/cni/bin "$root"/etc/cni/net.d "$root"/etc/kubernetes/manifests "$root"/kind/manifests
  for program in host-local loopback portmap ptp; do mv "$root/usr/lib/cni/$program" "$root/opt/cni/bin/"; done
  rm -r "$root/usr/lib/cni"
  echo -n "v$KUBERNETES_VERSION" >"$root/kind/version"
  cp "$HERE/kind/kindnet/kindnet.yaml" "$root/kind/manifests/default-cni.yaml"
}

# One layer holds what all containers of the node run, so that a node unpacks it once: Kubernetes, etcd, and what
# kube-proxy and the stand-in for kindnetd call, with the libraries that those are linked to.
pack_parts() { # ROOT PARTS ETCD
  local root=$1 parts=$2 name
  mkdir -p "$parts"/{tmp,usr/local/bin}
  # shellcheck disable=SC2016 # the inner shell expands it
  chroot "$root" sh -c '
    set -- /usr/sbin/xtables-nft-multi /usr/sbin/nft /sbin/ip /bin/sh /bin/cat /bin/mv /bin/sleep \
      /usr/lib/*/xtables/*.so
    for file; do echo "$file"; ldd "$file" | grep -o "/[^ ]*"; done |
      sort -u | tar --create --dereference --absolute-names --files-from=-' | tar --extract --directory "$parts"
  for name in ip{,6}tables{,-save,-restore}; do ln -s xtables-nft-multi "$parts/usr/sbin/$name"; done
  cp "$BIN/kube" "$3" "$HERE/kind/kindnet/kindnet.sh" "$parts/usr/local/bin/"
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl; do
    ln -s kube "$parts/usr/local/bin/$name"
  done
}

# Into the store of the node's own containerd, in a process namespace that ends with it. What is unpacked is unpacked on
# the node that needs it.
import_images() { # ROOT
  # shellcheck disable=SC2016 # the inner shell expands it
  unshare --mount --pid --fork --kill-child --mount-proc="$1/proc" chroot "$1" sh -euc '
    containerd --config /dev/null >/run/containerd.log 2>&1 &
    for try in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
    for image in parts pause; do ctr --namespace k8s.io images import --no-unpack "/$image.tar"; done
    for name in $(kubeadm config images list --kubernetes-version "$(cat /kind/version)"); do
      case $name in
        */kube-* | */etcd:*) ctr --namespace k8s.io images tag "$0" "$name" ;;
      esac
    done' "$PARTS_IMAGE" >&2
}
