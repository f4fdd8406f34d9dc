#!/bin/bash
# Stop what up.sh started: down.sh BASE. Only some of its hosts: down.sh BASE node2 (a power cut of node2).
set -uo pipefail
BASE=$(realpath -m "${1:?usage: down.sh BASE [HOST...]}")
shift
[ -d "$BASE/run" ] || exit 0
[ "${SLOCK:-}" ] || SLOCK=1 exec flock -o "$BASE/lock" "$0" "$BASE" "$@"
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=hosts.sh
. "$HERE/hosts.sh"
gone() { case $(stat_of "$1") in '' | Z*) true ;; *) false ;; esac } # a zombie counts
stop() {
  local pid start child file=$BASE/run/$1.pid
  [ -s "$file" ] || return 0
  read -r pid start <"$file"
  if [ -n "$start" ] && [ "$(start_time "$pid")" = "$start" ] && ! gone "$pid"; then
    child=$(init_of "$1")
    kill -KILL "$pid" # the kernel then kills that host's pid 1 (--kill-child) and with it all it ran
    for _ in $(seq 200); do
      gone "$pid" && gone "$child" && break
      sleep .02
    done
  fi
  rm -f "$file"
}
if [ $# -gt 0 ]; then
  for host; do stop "$host"; done
  exit 0
fi
for file in "$BASE"/run/node*.pid "$BASE/run/login.pid"; do
  [ -e "$file" ] && stop "$(basename "$file" .pid)"
done
echo down
