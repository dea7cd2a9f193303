#!/bin/bash
# Puts nginx and HAProxy of this machine's packages into DIR, with the libraries that they need: servers.sh DIR. They are
# backends that read the PROXY protocol; their configuration is mounted at /etc/server.
set -euo pipefail
out=$1

copy() { # FILE: to the place it has
  install -D --mode="$(stat --dereference --format=%a "$1")" "$1" "$out$1"
}

mkdir -p "$out"/{dev,etc/server,proc,run,sys,tmp,var}
chmod 1777 "$out/tmp"
for program in nginx haproxy; do
  file=$(PATH=$PATH:/usr/sbin type -P "$program")
  copy "$file"
  while read -r library; do
    copy "$library"
  done < <(ldd "$file" | grep -o '/[^ ]*')
done
