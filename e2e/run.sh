#!/bin/bash
# Runs the end-to-end tests as a host outside the cluster. Arguments go to the test runner: a name to filter by.
set -euo pipefail
cd "$(dirname "$0")/.."
runner=$(e2e/cluster/cluster.sh runner)
host=$(rustc -vV | sed -n 's/^host: //p')
[ -z "$runner" ] || export "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$host")_RUNNER=$runner"
# What the images were built from: for tests with a controller of their own.
export LB_SVC_CONTROLLER=${CARGO_TARGET_DIR:-$PWD/target}/$host/release/lb-svc-controller
# What takes a lever only the local cluster has says so in its name.
skip=()
[ "${CLUSTER:-local}" = local ] || skip=(--skip local_)

suite() { # THREADS TEST...
  local threads=$1 tests=()
  shift
  for test; do tests+=(--test "$test"); done
  cargo test ${CI:+--locked} -q -p lb-svc-e2e "${tests[@]}" -- --test-threads "$threads" ${skip[@]+"${skip[@]}"} "${args[@]}"
}

# Futures of a whole test are large where nothing is optimised.
export RUST_MIN_STACK=16777216
args=("$@")
# First what needs a cluster nobody has used yet; last what shakes the cluster itself.
suite 1 document
suite 4 serving lifecycle healing network conflict faults settings pending subnets
suite 1 direct spread failover disruption modes kills soak
