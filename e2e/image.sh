#!/bin/bash
# Packs a directory as a container image of one layer, with nothing but tar and sha256sum:
#   image.sh NAME ROOTFS_DIR OUT.tar [--entrypoint JSON] [--cmd JSON] [--user USER]
# OUT.tar is what `docker save` would write: `ctr images import`, `docker load` and `kind load image-archive` take it.
# The same directory gives the same bytes: entries are sorted, owned by 0:0, and dated 1970.
set -euo pipefail

die() { echo "image.sh: $*" >&2; exit 2; }
usage() { sed -n '3s/^# *//p' "$0" >&2; exit 2; }

[ $# -ge 3 ] || usage
name=$1 rootfs=$2 out=$3
shift 3
entrypoint=null cmd=null user=
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case $1 in
    --entrypoint) entrypoint=$2 ;;
    --cmd) cmd=$2 ;;
    --user) user=$2 ;;
    *) usage ;;
  esac
  shift 2
done

[[ $name =~ ^[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9._-]+$ ]] || die "not an image name with a tag: $name"
[[ $user =~ ^[A-Za-z0-9_:-]*$ ]] || die "not a user: $user"
[ -d "$rootfs" ] || die "no such directory: $rootfs"
case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) die "no image architecture is known for $(uname -m)" ;;
esac

pack() { # DIR OUT ENTRY...
  local dir=$1 out=$2
  shift 2
  tar --create --file "$out" --directory "$dir" --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "$@"
}

sha256() { sha256sum "$1" | cut -d' ' -f1; }

work=$(mktemp -d "$out.XXXXXX") # beside the result, so that the last step is a rename
trap 'rm -rf "$work"' EXIT
mkdir "$work/image"

pack "$rootfs" "$work/image/layer.tar" .
cat >"$work/image/config.json" <<END
{
  "created": "1970-01-01T00:00:00Z",
  "architecture": "$arch",
  "os": "linux",
  "config": {
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    "Entrypoint": $entrypoint,
    "Cmd": $cmd,
    "User": "$user"
  },
  "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256 "$work/image/layer.tar")"]}
}
END
config=$(sha256 "$work/image/config.json").json
mv "$work/image/config.json" "$work/image/$config"
echo "[{\"Config\": \"$config\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" >"$work/image/manifest.json"

pack "$work/image" "$work/out.tar" manifest.json "$config" layer.tar
mv "$work/out.tar" "$out"
