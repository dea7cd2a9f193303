#!/bin/bash
# What a node runs before kind's own entrypoint. systemd and the kubelet set things that are the whole kernel's, and so
# the machine's: they find them set here, in files, and the machine keeps what it has.
set -euo pipefail

settings=/run/kernel-settings
mkdir -p "$settings"

pretend() { # SETTING VALUE
  local file=$settings/${1//\//.}
  echo "$2" >"$file"
  mount --bind "$file" "/proc/sys/$1"
}

pretend fs/file-max 9223372036854775807
pretend kernel/panic 10
pretend kernel/panic_on_oops 1
pretend vm/overcommit_memory 1

exec /usr/local/bin/entrypoint /sbin/init
