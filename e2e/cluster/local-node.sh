# shellcheck shell=bash
# A node: a network namespace on the LAN, and a mount namespace in which /run, /var/lib and /var/log are its own. So
# containerd, kubelet and the CNI plugins use their usual paths, and all that they mount goes when they go.

start_containerd() { # NODE
  local n=n$1 dir=$STATE/n$1
  make_cgroups "$n"
  mkdir -p "$dir"/{run,lib,log,cni}
  # shellcheck disable=SC2016 # the inner shell expands it
  spawn "node-$n" unshare --mount --propagation private sh -c '
    for at in run:/run lib:/var/lib log:/var/log; do mount --bind "$0/${at%:*}" "${at#*:}"; done
    mount --make-rshared /
    touch /run/node-is-ready
    while :; do sleep infinity; done' "$dir"
  await 10 "node-$n" "the file systems of node $1" test -e "$dir/run/node-is-ready"
  write_cni_config "$1"
  write_containerd_config "$dir"
  run_containerd "$1"
}

run_containerd() { # NODE
  spawn_on "$1" containerd containerd --config "$STATE/n$1/containerd.toml"
  await 20 "containerd-n$1" "containerd on node $1" ctr_on "$1" version
  import "$BIN/pause.tar" "$1"
}

start_kube_proxy() { # NODE
  spawn_on "$1" kube-proxy kube-proxy --config="$STATE/n$1/kube-proxy.yaml"
}

start_kubelet() { # NODE [SINCE]: and its kube-proxy, if that does not run
  write_kubelet_config "$1"
  write_kube_proxy_config "$1"
  spawn_on "$1" kubelet kubelet --hostname-override="n$1" --node-ip="$(node_ip "$1")" \
    --config="$STATE/n$1/kubelet.yaml" --kubeconfig="$STATE/pki/n$1.kubeconfig"
  runs "kube-proxy-n$1" || start_kube_proxy "$1"
  await 60 "kubelet-n$1" "node $1 to be Ready" node_ready "$1" "${2:-}"
}

# A node that comes back is Ready only once its kubelet has renewed its lease: until the grace period ends, the API
# server goes by what the kubelet said before. (A new node renews its lease no sooner than 10 s after it made it.)
node_ready() { # NODE [SINCE]
  local ready renewed
  ready=$(kubectl_admin get node "n$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') || return 1
  [ "$ready" = True ] || return 1
  [ -n "${2:-}" ] || return 0
  renewed=$(kubectl_admin -n kube-node-lease get lease "n$1" -o 'jsonpath={.spec.renewTime}') || return 1
  [[ "$renewed" > "$2" ]]
}

# As a power failure does: its link and all of its processes at once. What is stopped does no more than what is dead;
# taking it away would keep the processors busy that the other nodes, on this one machine, need for what comes then.
cut_off() { # NODE
  local pids
  touch "$STATE/n$1/off"
  pids=$(node_processes "$1")
  in_lan link set "n$1" down
  # shellcheck disable=SC2086 # one argument for each process
  kill -STOP $pids 2>/dev/null || true
}

plug_in() { # NODE: it boots with the disk it had, and without pods or their networks
  in_lan link del "n$1" 2>/dev/null || true
  ip netns del "lb-svc-n$1" 2>/dev/null || true
  kill_until_gone node_processes "$1"
  remove_cgroups "$1"
  rm -rf "$STATE/n$1/run" "$STATE/n$1/off"
  add_lan_host "n$1" "$(node_ip "$1")"
  join_pod_networks "$1"
  start_containerd "$1"
  start_kubelet "$1" "$(now)"
}

is_off() { [ -e "$STATE/n$1/off" ]; } # NODE

node_processes() { # NODE
  processes "[a-z-]*-n$1"
  cgroup_processes "$1"
}

spawn_on() { # NODE PROGRAM CMD...
  local holder
  holder=$(main_process "node-n$1")
  if [ -z "$holder" ] || is_off "$1"; then die "node $1 is off: start it first"; fi
  spawn "$2-n$1" nsenter --mount="/proc/$holder/ns/mnt" --net="/run/netns/lb-svc-n$1" "${@:3}"
}

ctr_on() { # NODE ARGS...
  ctr --address "$STATE/n$1/run/containerd/containerd.sock" --namespace k8s.io "${@:2}"
}

import() { # ARCHIVE NODE
  ctr_on "$2" images import "$1" >/dev/null || die "node $2 could not import $1"
}

# --- configuration ---

write_cni_config() { # NODE: Multus first, and with it the pod network: point-to-point links and static routes
  local dir=$STATE/n$1/cni
  mkdir -p "$dir"/{bin,net.d}
  ln -sf "$CNI_PLUGINS"/* "$BIN/multus" "$dir/bin/"
  cat >"$dir/net.d/00-multus.conf" <<END
{
  "cniVersion": "0.3.1",
  "name": "multus",
  "type": "multus",
  "kubeconfig": "$STATE/pki/multus.kubeconfig",
  "confDir": "$dir/net.d",
  "binDir": "$dir/bin",
  "logFile": "$STATE/log/multus-n$1.log",
  "logLevel": "error",
  "namespaceIsolation": true,
  "globalNamespaces": "kube-system",
  "delegates": [{
    "cniVersion": "0.3.1",
    "name": "pods",
    "plugins": [
      {
        "type": "ptp",
        "mtu": 1500,
        "ipam": {
          "type": "host-local",
          "ranges": [[{"subnet": "10.244.$1.0/24"}]],
          "routes": [{"dst": "0.0.0.0/0"}]
        }
      },
      {"type": "portmap", "capabilities": {"portMappings": true}}
    ]
  }]
}
END
}

# restrict_oom_score_adj: a machine may withhold CAP_SYS_RESOURCE, and runc then fails to lower the score.
write_containerd_config() { # DIR
  cat >"$1/containerd.toml" <<END
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$1/cni/bin"
    conf_dir = "$1/cni/net.d"
END
}

# No eviction: what fills the disk and the page cache is the rest of the machine, builds above all. It would taint every
# node for five minutes and end what is tested; `up` looks at the space that is left.
write_kubelet_config() { # NODE
  cat >"$STATE/n$1/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $STATE/pki/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /lb-svc-n$1
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
resolvConf: ""
nodeStatusUpdateFrequency: 5s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%, imagefs.inodesFree: 0%}
volumePluginDir: /var/lib/kubelet/volume-plugins
END
}

# conntrack: its limits are of the whole machine, which is not ours to tune.
write_kube_proxy_config() { # NODE
  cat >"$STATE/n$1/kube-proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: $(cat "$STATE/proxy-mode" 2>/dev/null || echo nftables)
clusterCIDR: 10.244.0.0/16
hostnameOverride: n$1
clientConnection: {kubeconfig: $STATE/pki/kube-proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0}
END
}

# --- cgroups ---

# The kubelet demands that its root exists: under every hierarchy of version 1 (the nameless `systemd` one too), or
# once under version 2, with the controllers handed down.
make_cgroups() { # NAME
  local root=/sys/fs/cgroup controller file
  if [ -f "$root/cgroup.controllers" ]; then
    for controller in cpu cpuset hugetlb io memory pids; do
      grep -qw "$controller" "$root/cgroup.controllers" || continue
      echo "+$controller" >"$root/cgroup.subtree_control"
    done
    mkdir -p "$root/lb-svc-$1"
    return
  fi
  awk '$3 == "cgroup" {print $2}' /proc/mounts | while read -r root; do
    mkdir -p "$root/lb-svc-$1"
    for file in cpuset.cpus cpuset.mems; do # a new cpuset is empty, and nothing can run in it
      if [ -f "$root/$file" ]; then cat "$root/$file" >"$root/lb-svc-$1/$file"; fi
    done
    # What the kubelet gives to all pods of a node, which this level would take away again.
    if [ -f "$root/cpu.shares" ]; then echo $((1024 * $(nproc))) >"$root/lb-svc-$1/cpu.shares"; fi
  done
}

node_cgroups() { # [NODE]: the cgroups of a node, or of all, the deepest first
  find /sys/fs/cgroup -depth -type d -regextype posix-extended -regex ".*/lb-svc-n${1:-[1-9]}(/.*)?"
}

cgroup_processes() { # [NODE]
  node_cgroups "$@" | sed 's|$|/cgroup.procs|' | xargs -r cat 2>/dev/null | sort -un || true
}

remove_cgroups() { # [NODE]
  for _ in $(seq 50); do
    [ -n "$(node_cgroups "$@")" ] || return 0
    node_cgroups "$@" | xargs -r rmdir 2>/dev/null || sleep 0.05
  done
  die "these cgroups cannot be removed: $(node_cgroups "$@" | tr '\n' ' ')"
}
