#!/bin/bash
# Runs rings of tests, which are targets of the Makefile, one after the other: rings.sh RING...
# Stops at the first that fails, and ends with a table of how long each took.
set -euo pipefail
cd "$(dirname "$0")/.."
times_of=ring
# shellcheck source=times.sh
. e2e/times.sh

for ring; do
  timed "$ring" make --no-print-directory "$ring"
done
