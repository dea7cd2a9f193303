#!/bin/bash
# Measures, on the cluster that is up and with what is installed there, and prints one table. Arguments go to the
# program: --runs N, --failovers N, --minutes N, --only NAME[,NAME...], --quick, --help.
set -euo pipefail
cd "$(dirname "$0")/.."
export CLUSTER=${CLUSTER:-local}
locked=${CI:+--locked}
host=$(rustc -vV | sed -n 's/^host: //p')

# As the images are built, so that nothing is built twice.
RUSTFLAGS='-C target-feature=+crt-static' cargo build -q $locked --release --target "$host" \
  --bin lb-svc-controller --bin lb-svc-gateway --bin lb-svc-backend --bin lb-svc-bench

only=$(sed -n 's/.*--only[= ]\([^ ]*\).*/\1/p' <<<"$*")
if [[ -z $only || ,$only, == *,rules,* ]]; then
  echo "rules: 1000 ports in the gateway, beside one iptables-restore" >&2
  # In namespaces of its own, where the processors are for nobody else.
  cargo test -q $locked --release -p lb-svc-gateway --test ports --no-run
  result=$(env "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$host")_RUNNER=unshare --net --mount" \
    cargo test -q $locked --release -p lb-svc-gateway --test ports -- --ignored --nocapture)
  rules=$(sed -n 's/^thousand-ports-ms \([0-9.]*\) \([0-9.]*\)$/\1,\2/p' <<<"$result")
  [ -n "$rules" ] || { echo "bench: the thousand ports were not measured: $result" >&2; exit 1; }
  echo "  medians $rules ms" >&2
  set -- "$@" --rules "$rules"
fi

if [[ $CLUSTER == local ]] && [[ -z $only || ,$only, == *,failover,* || ,$only, == *,fleet,* ]]; then
  LB_SVC_METALLB=$(e2e/cluster/cluster.sh metallb)
  export LB_SVC_METALLB
fi

# For what is measured of a controller beside the cluster.
export LB_SVC_CONTROLLER=$PWD/target/$host/release/lb-svc-controller

# shellcheck disable=SC2046  # a command and its arguments, or nothing
exec $(e2e/cluster/cluster.sh runner) "target/$host/release/lb-svc-bench" "$@"
