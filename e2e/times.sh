# shellcheck shell=bash
# How long parts of a test run take. Source it; from then on the script ends with a table of the parts that it ran
# with `timed`, whether it succeeds or not.

times=()

timed() { # NAME COMMAND...: runs a command, not a function, and notes how long it took and whether it failed
  local began=$SECONDS status=0
  "${@:2}" || status=$?
  times+=("$(printf '%-12s %4d:%02d%s' "$1" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)) "$([ $status = 0 ] || echo '  failed')")")
  return $status
}

show_times() {
  [ ${#times[@]} -gt 0 ] || return 0
  printf '\n%-12s %7s\n' "$times_of" "min:s"
  printf '%s\n' "${times[@]}"
}

times_of=${times_of:?set it to what the parts are, for the head of the table}
trap show_times EXIT
