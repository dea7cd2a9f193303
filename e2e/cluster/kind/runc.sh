#!/bin/bash
# runc for machines that withhold CAP_SYS_RESOURCE: it takes that capability out of what is asked for, as to give what
# one does not have is an error. Docker's engine calls it in the place of runc.
set -euo pipefail

args=("$@")
while [ $# -gt 1 ]; do
  file=
  case $1 in
    --bundle) file=$2/config.json ;;
    --process) file=$2 ;;
  esac
  if [ -n "$file" ]; then
    stripped=$(jq -c '(.process.capabilities, .capabilities | objects | .[]) -= ["CAP_SYS_RESOURCE"]' "$file")
    printf '%s\n' "$stripped" >"$file"
  fi
  shift
done
exec runc "${args[@]}"
