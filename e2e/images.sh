#!/bin/bash
# Packs the images from built binaries: images.sh DIR_OF_BINARIES DIR_OF_GATEWAY. Says how large each is.
set -euo pipefail
cd "$(dirname "$0")/.."
binaries=$1 gateway=$2
out=target/images
mkdir -p "$out"
work=$(mktemp -d "$out/rootfs.XXXXXX")
trap 'rm -rf "$work"' EXIT

image() { # NAME ROOTFS ENTRYPOINT [USER]
  e2e/image.sh "localhost/lb-svc-$1:dev" "$2" "$out/$1.tar" --entrypoint "[\"$3\"]" --user "${4:-0:0}"
  printf 'target/images/%s.tar  %s MiB\n' "$1" "$(du -k "$out/$1.tar" | awk '{printf "%.1f", $1 / 1024}')" >&2
}

for name in controller backend; do
  mkdir "$work/$name"
  cp "$binaries/lb-svc-$name" "$work/$name/"
  image "$name" "$work/$name" "/lb-svc-$name" "$([ $name = backend ] && echo 0:0 || echo 65532:65532)"
done
e2e/servers.sh "$work/servers"
image servers "$work/servers" /usr/sbin/nginx 65532:65532
gateway/rootfs.sh "$work/gateway" "$gateway/lb-svc-gateway"
image gateway "$work/gateway" /usr/local/bin/lb-svc-gateway
