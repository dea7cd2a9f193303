#!/bin/bash
# Runs the end-to-end tests as a host outside the cluster, on the cluster that is up and with what is installed there,
# and ends with a table of how long each suite took. A suite is a file in e2e/tests.
#   SUITE='NAME...' run.sh   only those suites
#   run.sh FILTER            only the tests whose names contain FILTER; more arguments go to the test runner as well
set -euo pipefail
cd "$(dirname "$0")/.."
times_of=suite
# shellcheck source=times.sh
. e2e/times.sh

# The first needs a cluster that nobody has used yet. Of those that measure what is lost few tests run side by side.
# The last ones break parts of the cluster, so that nothing else may run beside them.
fresh=(document)
parallel=(serving proxy_protocol lifecycle healing network conflict faults settings pending subnets regressions plugin)
few=(direct)
alone=(node_mode spread tenant fleet failover disruption modes chart kills soak)
# From and to another release, which takes minutes to build: where that is in the cache, or when asked for.
asked=(upgrade)

runner=$(e2e/cluster/cluster.sh runner)
host=$(rustc -vV | sed -n 's/^host: //p')
[ -z "$runner" ] || export "CARGO_TARGET_$(tr a-z- A-Z_ <<<"$host")_RUNNER=$runner"
# What the images were built from: for tests with a controller of their own.
export LB_SVC_CONTROLLER=${CARGO_TARGET_DIR:-$PWD/target}/$host/release/lb-svc-controller
export LB_SVC_PLUGIN=${CARGO_TARGET_DIR:-$PWD/target}/$host/release/kubectl-lb_svc
# What the suite chart runs.
if [[ -z ${SUITE:-} || $SUITE == chart ]]; then
  helm=$(e2e/cluster/cluster.sh helm)
  prometheus=$(e2e/cluster/cluster.sh prometheus)
  export PATH=$helm:$prometheus:$PATH
fi
# Futures of a whole test are large where nothing is optimised.
export RUST_MIN_STACK=16777216
# Tests that need what only the local cluster can do have names that begin with local_.
skip=()
[ "${CLUSTER:-local}" = local ] || skip=(--skip local_)
args=("$@")

known=" ${fresh[*]} ${parallel[*]} ${few[*]} ${alone[*]} ${asked[*]} "
for file in e2e/tests/*.rs; do
  suite=$(basename "$file" .rs)
  [[ $known == *" $suite "* ]] || { echo "run.sh: $file is in no list of suites above" >&2; exit 2; }
done
for suite in ${SUITE:-}; do
  [[ $known == *" $suite "* ]] || { echo "run.sh: no suite '$suite'; there are:$known" >&2; exit 2; }
done

suites() { # THREADS SUITE...
  local threads=$1 suite
  shift
  for suite; do
    [[ -z ${SUITE:-} || " $SUITE " == *" $suite "* ]] || continue
    timed "$suite" cargo test ${CI:+--locked} -q --workspace --all-features --test "$suite" -- --test-threads "$threads" \
      ${skip[@]+"${skip[@]}"} ${args[@]+"${args[@]}"}
  done
}

suites 1 "${fresh[@]}"
suites 4 "${parallel[@]}"
suites 2 "${few[@]}"
suites 1 "${alone[@]}"
if [ -n "${SUITE:-}" ] || e2e/cluster/cluster.sh has-release-before; then
  suites 1 "${asked[@]}"
fi
