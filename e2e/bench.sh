#!/bin/bash
# Measures, on the cluster that is up and with what is installed there, and prints one table. Arguments go to the
# program: --runs N, --failovers N, --minutes N, --only NAME[,NAME...], --quick, --help.
set -euo pipefail
cd "$(dirname "$0")/.."
export CLUSTER=${CLUSTER:-local}
host=$(rustc -vV | sed -n 's/^host: //p')

# As the images are built; but the bench asks more of some libraries, which are built once more for it.
RUSTFLAGS='-C target-feature=+crt-static' cargo build -q ${CI:+--locked} --release --target "$host" \
  --bin lb-svc-controller --bin lb-svc-gateway --bin lb-svc-backend --bin lb-svc-bench

only=$(sed -n 's/.*--only[= ]\([^ ]*\).*/\1/p' <<<"$*")
wants() { [[ -z $only || ,$only, == *",$1,"* ]]; }

ports() { # TEST LINE: the numbers in the line of this name that a measurement ends in
  local result numbers
  # In namespaces of its own, where the processors are for nobody else.
  cargo test -q ${CI:+--locked} --release -p lb-svc-gateway --test ports --no-run
  result=$(env "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$host")_RUNNER=unshare --net --mount" \
    cargo test -q ${CI:+--locked} --release -p lb-svc-gateway --test ports -- --ignored --nocapture --exact "$1")
  numbers=$(sed -n "s/^$2 //p" <<<"$result")
  [ -n "$numbers" ] || { echo "bench: $1 was not measured: $result" >&2; exit 1; }
  echo "  medians $numbers" >&2
  echo "${numbers// /,}"
}

if wants rules; then
  echo "rules: 1000 ports in the gateway, beside one iptables-restore" >&2
  rules=$(ports a_thousand_ports thousand-ports-ms)
  set -- "$@" --rules "$rules"
fi
if wants endpoints; then
  echo "endpoints: thousands of them, by nftables" >&2
  endpoints=$(ports five_thousand_endpoints endpoints-ms)
  set -- "$@" --endpoints "$endpoints"
fi

if wants proxy; then
  echo "proxy: beside the masquerade, MiB/s and connections a second of both" >&2
  proxy=$(ports proxy_beside_the_masquerade proxy)
  set -- "$@" --proxy "$proxy"
fi

if [[ $CLUSTER == local ]] && { wants failover || wants fleet; }; then
  LB_SVC_METALLB=$(e2e/cluster/cluster.sh metallb)
  export LB_SVC_METALLB
fi

# For what is measured of a controller beside the cluster.
export LB_SVC_CONTROLLER=$PWD/target/$host/release/lb-svc-controller

# shellcheck disable=SC2046  # a command and its arguments, or nothing
exec $(e2e/cluster/cluster.sh runner) "target/$host/release/lb-svc-bench" "$@"
