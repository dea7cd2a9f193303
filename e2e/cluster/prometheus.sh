# shellcheck shell=bash
# Prometheus and promtool, by which rules and dashboard are tested: out of the distribution's package, which is not
# installed, so that no service and no user of it come to be on this machine.

verb_prometheus() {
  local version dir
  version=$(prometheus_version)
  # Without lists there is nothing to choose from, and with old ones nothing to fetch.
  if [ -z "$version" ] || [ ! -d "$CACHE/prometheus-$version" ]; then
    [ "$(id -u)" != 0 ] || apt-get -qq -o DPkg::Lock::Timeout=120 update >&2
    version=$(prometheus_version)
  fi
  [ -n "$version" ] || die "no package of Prometheus is known here: run 'apt-get update' as root"
  dir=$CACHE/prometheus-$version
  once "$dir" fetch_prometheus
  echo "$dir"
}

prometheus_version() {
  LC_ALL=C apt-cache policy prometheus 2>/dev/null | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p' | tr -c '[:alnum:].\n' -
}

fetch_prometheus() { # OUT_DIR
  say "fetching Prometheus"
  (cd "$1" && apt-get -qq -o APT::Sandbox::User=root download prometheus >&2) || die "cannot fetch the package prometheus"
  dpkg-deb --fsys-tarfile "$1"/*.deb |
    tar --extract --directory "$1" --strip-components=3 ./usr/bin/prometheus ./usr/bin/promtool
  rm "$1"/*.deb
}
