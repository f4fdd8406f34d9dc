#!/bin/bash
# Run a command on a host of the cluster: on.sh BASE login sinfo. Signals are not forwarded into it.
set -uo pipefail
BASE=$(realpath -m "${1:?usage: on.sh BASE HOST CMD...}")
host=${2:?usage: on.sh BASE HOST CMD...}
shift 2
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=hosts.sh
. "$HERE/hosts.sh"
alive "$host" || { echo "on.sh: host $host is not up" >&2; exit 125; }
# The working directory is looked up inside: the one outside belongs to another mount, which renames notice.
# shellcheck disable=SC2016
exec nsenter -t "$(init_of "$host")" -m -u -i -n -p --wd=/ -- \
  bash -c 'cd "$1" && shift && exec "$@"' on.sh "$PWD" "$@"
