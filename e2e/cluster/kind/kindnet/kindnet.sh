#!/bin/sh
# Stands in for kindnetd on a node: a CNI configuration for the node's own pods, a route to the pods of each other node,
# and masquerading of what leaves the pod network. NODE is the node's name, POD_SUBNET all pods' network.
set -eu

masquerade() {
  nft -f - <<END
table ip kindnet
delete table ip kindnet
table ip kindnet {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr $POD_SUBNET ip daddr != $POD_SUBNET masquerade
  }
}
END
}

write_config() { # CIDR: aside and renamed, as containerd must not read half a file
  cat >/etc/cni/net.d/kindnet.tmp <<END
{
  "cniVersion": "0.3.1",
  "name": "kindnet",
  "plugins": [
    {
      "type": "ptp",
      "mtu": 1500,
      "ipam": {
        "type": "host-local",
        "dataDir": "/run/cni-ipam-state",
        "ranges": [[{"subnet": "$1"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END
  mv /etc/cni/net.d/kindnet.tmp /etc/cni/net.d/10-kindnet.conflist
}

nodes='{.metadata.name} {.spec.podCIDR} {.status.addresses[?(@.type=="InternalIP")].address}{"\n"}'
masquerade
while :; do
  # A watch ends now and then, and begins with all nodes again.
  kubectl get nodes --watch --output "jsonpath=$nodes" | while read -r name cidr address; do
    if [ -z "$address" ]; then
      continue # not known yet
    elif [ "$name" != "$NODE" ]; then
      ip route replace "$cidr" via "$address"
    elif [ ! -e /etc/cni/net.d/10-kindnet.conflist ]; then
      write_config "$cidr"
    fi
  done
  sleep 1
done
