# shellcheck shell=bash
# The release before: its images and its manifests, built once from the repository's history into the cache. What it
# wrote and ran is what an upgrade meets.

# The commit that "the release before" means.
RELEASE_BEFORE=790b528

release_before() { echo "$CACHE/release-$RELEASE_BEFORE"; }

verb_has_release_before() { [ -d "$(release_before)" ]; }

verb_release_before() {
  once "$(release_before)" with_heartbeat "the release before, $RELEASE_BEFORE (about 4 minutes, once)" build_release_before
  release_before
}

build_release_before() { # OUT_DIR
  local out=$1 source="$1/source" target host name
  host=$(rustc -vV | sed -n 's/^host: //p')
  mkdir "$source" && cd "$HERE/../.." || return 1
  git archive "$RELEASE_BEFORE" | tar --extract --directory "$source" ||
    die "commit $RELEASE_BEFORE is not in this clone: git fetch --unshallow"
  target=$source/target/$host/release
  (cd "$source" && env -u CARGO_TARGET_DIR RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --locked \
    --release --target "$host" --bin lb-svc-controller --bin lb-svc-gateway >&2) || return 1
  mkdir "$source/controller-root"
  cp "$target/lb-svc-controller" "$source/controller-root/" || return 1
  "$source/gateway/rootfs.sh" "$source/gateway-root" "$target/lb-svc-gateway" >&2 || return 1
  "$source/e2e/image.sh" localhost/lb-svc-controller:before "$source/controller-root" "$out/controller.tar" \
    --entrypoint '["/lb-svc-controller"]' --user 65532:65532 >&2 || return 1
  "$source/e2e/image.sh" localhost/lb-svc-gateway:before "$source/gateway-root" "$out/gateway.tar" \
    --entrypoint '["/usr/local/bin/lb-svc-gateway"]' --user 0:0 >&2 || return 1
  cp -r "$source/manifests/controller" "$out/manifests" || return 1
  for name in controller gateway; do
    sed -i "s|localhost/lb-svc-$name:dev|localhost/lb-svc-$name:before|" "$out/manifests/deployment.yaml"
  done
  rm -r "$source"
}
