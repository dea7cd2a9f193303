# shellcheck shell=bash
# The networks of the local cluster, all in namespaces of their own: nothing here touches the machine's own network.
#
#   far 172.20.0.9 ── router ──(mtu 1300)── lan: bridge 172.18.0.1/16 ─┬─ n1 172.18.0.2   pods 10.244.1.0/24
#                                                                      ├─ n2 172.18.0.3   pods 10.244.2.0/24
#                                                                      └─ client 172.18.0.9

make_network() {
  local i
  add_namespace lan
  in_lan link add br0 type bridge
  in_lan addr add 172.18.0.1/16 dev br0
  in_lan link set br0 up
  for i in $(seq "$(node_count)"); do add_lan_host "n$i" "$(node_ip "$i")"; done
  add_lan_host client 172.18.0.9

  add_namespace router
  add_namespace far
  cable lan wan router lan 1300
  cable router far far eth0 1500
  in_lan addr add 172.19.0.1/30 dev wan
  in_lan route add 172.20.0.0/24 via 172.19.0.2
  ip -n lb-svc-router addr add 172.19.0.2/30 dev lan
  ip -n lb-svc-router addr add 172.20.0.1/24 dev far
  ip -n lb-svc-router route add 172.18.0.0/16 via 172.19.0.1
  ip -n lb-svc-far addr add 172.20.0.9/24 dev eth0
  ip -n lb-svc-far route add default via 172.20.0.1
}

node_ip() { echo "172.18.0.$(($1 + 1))"; }

add_namespace() { # NAME: with the settings of a plain kernel, whatever the machine's own are
  ip netns add "lb-svc-$1"
  ip -n "lb-svc-$1" link set lo up
  in_net "$1" sysctl -qew net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
    net.bridge.bridge-nf-call-iptables=0
}

add_lan_host() { # NAME ADDRESS
  add_namespace "$1"
  cable lan "$1" "$1" eth0 1500
  in_lan link set "$1" master br0
  ip -n "lb-svc-$1" addr add "$2/16" dev eth0
  ip -n "lb-svc-$1" route add default via 172.18.0.1
}

cable() { # NAMESPACE INTERFACE NAMESPACE INTERFACE MTU
  ip -n "lb-svc-$1" link add "$2" mtu "$5" type veth peer name "$4" mtu "$5" netns "lb-svc-$3"
  ip -n "lb-svc-$1" link set "$2" up
  ip -n "lb-svc-$3" link set "$4" up
}

join_pod_networks() { # NODE: routes to the pods of the others; pods keep their address inside the cluster only
  local i
  for i in $(seq "$(node_count)"); do
    [ "$i" = "$1" ] || ip -n "lb-svc-n$1" route add "10.244.$i.0/24" via "$(node_ip "$i")"
  done
  in_net "n$1" nft -f - <<END
table ip lb-svc-pods {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
  }
}
END
}

in_lan() { ip -n lb-svc-lan "$@"; }

# Not `ip netns exec`, which mounts /sys anew and so hides the cgroups.
in_net() { # NAME CMD...
  [ $# -ge 2 ] || die "what to run?"
  nsenter --net="/run/netns/lb-svc-$1" "${@:2}"
}

namespaces() { ip netns list | awk '$1 ~ /^lb-svc-/ {print $1}'; }
