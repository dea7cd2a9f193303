# shellcheck shell=bash
# The Docker engine that kind talks to: the machine's, or where none runs one of our own. That one is Debian's, unpacked
# into the cache and never installed, in a network namespace of its own: its bridge, its rules and its settings are
# that namespace's, and its mounts are seen by its processes only.
#
# As on the local cluster, what belongs to it needs no record that a crash could spoil:
#   processes    live below the cgroup lb-svc-kind
#   namespace    is called kind-lb-svc, which is none of the local cluster's names
#   files        lie in $STATE and $ENGINE_RUN

ENGINE=$CACHE/docker-engine
ENGINE_NET=kind-lb-svc
ENGINE_RUN=/run/kind-lb-svc
ENGINE_CGROUP=lb-svc-kind

own_engine() { [ -S "$ENGINE_RUN/docker.sock" ]; }

# Every verb talks to the engine that `up` chose.
if own_engine; then
  export DOCKER_HOST=unix://$ENGINE_RUN/docker.sock PATH=$ENGINE:$PATH
fi

engine_answers() { docker info >/dev/null 2>&1; }

need_engine() { # the machine's, or else our own, started
  engine_answers && return
  if [ ! -d "$ENGINE" ]; then die "there is no Docker engine to talk to; 'make kind-image' fetches one"; fi
  start_engine
}

fetch_engine() { # OUT_DIR
  local file
  say "fetching Debian's Docker engine"
  (
    cd "$1" || exit
    apt-get -qq update
    apt-get -qq -o APT::Sandbox::User=root download docker.io
    dpkg -x docker.io_*.deb unpacked
    for file in usr/bin/docker usr/sbin/dockerd usr/sbin/docker-proxy; do mv "unpacked/$file" .; done
    rm -r docker.io_*.deb unpacked
  )
}

start_engine() {
  local pid cgroup=/sys/fs/cgroup/pids # any hierarchy of version 1 will do
  end_engine
  say "starting a Docker engine in a network namespace of its own"
  mkdir -p "$STATE" "$ENGINE_RUN"
  ip netns add "$ENGINE_NET"
  ip -n "$ENGINE_NET" link set lo up
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then cgroup=/sys/fs/cgroup; fi
  mkdir -p "$cgroup/$ENGINE_CGROUP/engine"
  engine_config >"$STATE/engine.json"
  export DOCKER_HOST=unix://$ENGINE_RUN/docker.sock PATH=$ENGINE:$PATH
  (
    echo "$BASHPID" >"$cgroup/$ENGINE_CGROUP/engine/cgroup.procs"
    exec setsid nsenter --net="/run/netns/$ENGINE_NET" unshare --mount --propagation private \
      dockerd --config-file "$STATE/engine.json" >"$STATE/engine.log" 2>&1 </dev/null 9>&-
  ) &
  pid=$!
  disown # its end is not this script's to report
  for _ in $(seq 150); do
    if engine_answers; then return; fi
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.2
  done
  tail -n 20 "$STATE/engine.log" >&2
  die "the Docker engine does not come up"
}

# A privileged container asks for every capability there is. Where the machine withholds CAP_SYS_RESOURCE (bit 24), a
# runtime of our own asks for the others.
engine_config() {
  local runtime=runc
  if ((!(0x$(awk '$1 == "CapBnd:" {print $2}' /proc/self/status) >> 24 & 1))); then runtime=withheld; fi
  cat <<END
{
  "hosts": ["unix://$ENGINE_RUN/docker.sock"],
  "data-root": "$STATE/engine",
  "exec-root": "$ENGINE_RUN/exec",
  "pidfile": "$ENGINE_RUN/pid",
  "storage-driver": "overlay2",
  "bridge": "none",
  "cgroup-parent": "/$ENGINE_CGROUP",
  "exec-opts": ["native.cgroupdriver=cgroupfs"],
  "runtimes": {"withheld": {"path": "$HERE/kind/runc.sh"}},
  "default-runtime": "$runtime"
}
END
}

end_engine() {
  local pids
  for _ in $(seq 300); do
    pids=$(engine_processes)
    [ -n "$pids" ] || break
    # shellcheck disable=SC2086 # one argument for each process
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
  done
  [ -z "$pids" ] || die "these processes of the Docker engine do not end: $pids"
  if [ -e "/run/netns/$ENGINE_NET" ]; then ip netns del "$ENGINE_NET"; fi
  engine_cgroups | xargs -r rmdir 2>/dev/null || true
  rm -rf "$ENGINE_RUN" "$STATE/engine"
}

engine_cgroups() { find /sys/fs/cgroup -depth -type d -path "*/$ENGINE_CGROUP*"; }
engine_processes() { engine_cgroups | sed 's|$|/cgroup.procs|' | xargs -r cat 2>/dev/null | sort -un || true; }

in_engine_net() { # CMD...: where the engine's bridge is
  if own_engine; then nsenter --net="/run/netns/$ENGINE_NET" "$@"; else "$@"; fi
}
