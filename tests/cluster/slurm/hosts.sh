# shellcheck shell=bash
# Who is up, by the recorded process and its start time; sourced by the scripts beside it, which set BASE.
stat_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null; }
start_time() { stat_of "$1" | cut -d' ' -f20; }
init_of() { # pid 1 of a host, as seen from outside
  local pid child _
  read -r pid _ <"$BASE/run/$1.pid"
  read -r child _ <"/proc/$pid/task/$pid/children" || true
  echo "${child:?$1 is not up}"
}
alive() {
  local pid start
  [ -s "$BASE/run/$1.pid" ] && read -r pid start <"$BASE/run/$1.pid" && [ -n "$start" ] &&
    [ "$(start_time "$pid")" = "$start" ] && [ -n "$(init_of "$1" 2>/dev/null)" ]
}
