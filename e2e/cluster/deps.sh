# shellcheck shell=bash
# The packages that the cluster and the checks need, installed only where the thing itself is missing: a machine that
# has containerd from elsewhere keeps it.

CNI_PLUGINS=/usr/lib/cni

verb_deps() { install_missing needs_all "needs_$CLUSTER"; }

needs_all() { # the checks, the images and the clusters
  need "network tools" ip:iproute2 nft:nftables iptables:iptables conntrack:conntrack ping:iputils-ping sysctl:procps
  need "tools" curl:curl jq:jq openssl:openssl flock:util-linux unzip:unzip /etc/ssl/certs/ca-certificates.crt:ca-certificates
  need "servers that read the PROXY protocol" nginx:nginx haproxy:haproxy
  need "shell linter" shellcheck:shellcheck
  need "static C compiler" gcc:gcc /usr/include/stdio.h:libc6-dev
}

needs_local() {
  need "containers" containerd:containerd runc:runc "$CNI_PLUGINS/macvlan:containernetworking-plugins"
  need "etcd" etcd:etcd-server
}

needs_kind() { :; } # its nodes bring all of it

needs_node_image() {
  need "node image" mmdebstrap:mmdebstrap
  need "Docker's own engine" containerd:containerd runc:runc
}

install_missing() { # LIST...
  local install=() list
  for list; do "$list"; done
  [ ${#install[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "installing packages takes root; missing: ${install[*]}"
  without_services
}

need() { # GROUP COMMAND_OR_FILE:PACKAGE...: note for installation what is missing
  local group=$1 item missing=()
  shift
  for item; do
    have "${item%:*}" || missing+=("${item#*:}")
  done
  [ ${#missing[@]} = 0 ] && return
  say "$group: to install: ${missing[*]}"
  install+=("${missing[@]}")
}

have() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) PATH=$PATH:/usr/sbin:/sbin type -P "$1" >/dev/null ;;
  esac
}

# Debian asks /usr/sbin/policy-rc.d before it starts the service of a new package: 101 is no.
# What stood there comes back afterwards; a guard that a killed run left is known by its words.
POLICY=/usr/sbin/policy-rc.d
GUARD='#!/bin/sh
# lb-svc cluster.sh deps: no service starts while it installs
exit 101'

without_services() (
  if [ -e "$POLICY" ] && [ "$(cat "$POLICY")" != "$GUARD" ]; then
    mv "$POLICY" "$POLICY.lb-svc"
  fi
  trap 'rm -f "$POLICY"; [ ! -e "$POLICY.lb-svc" ] || mv "$POLICY.lb-svc" "$POLICY"' EXIT
  trap 'exit 1' INT TERM
  echo "$GUARD" >"$POLICY"
  chmod +x "$POLICY"
  install_packages
)

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  local apt=(apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120)
  say "reading the package lists"
  "${apt[@]}" update >&2
  say "installing ${#install[@]} packages"
  local log
  log=$(mktemp)
  if ! "${apt[@]}" install -y --no-install-recommends "${install[@]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    die "apt-get could not install: ${install[*]}"
  fi
  rm -f "$log"
  if [ -d /run/systemd/system ]; then # nor at the next boot, where they are ours alone
    for package in "${install[@]}"; do
      case $package in
        containerd) systemctl --quiet disable containerd ;;
        etcd-server) systemctl --quiet disable etcd ;;
      esac
    done
  fi
  say "packages are installed"
}
