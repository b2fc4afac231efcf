#!/bin/bash
# One allocation of the local scheduler. Runs SCRIPT as the leader of a session, forwards SIGTERM to it, records its
# exit code. Of several that are started with one ID_FILE only the first runs; all print the id of that one.
#
# usage: local_allocation.sh SCRIPT ID_FILE HOST DIRECTORY LOG

set -m # a child in a process group of its own, and with SIGINT as it should be
script=$1 id_file=$2 host=$3 directory=$4 log=$5 child='' stopped=''

stop() {
    stopped=yes
    [ -n "$child" ] && kill -TERM "$child"
}
trap stop TERM
trap : PIPE # whoever started us may be dead

read -r stat < "/proc/$$/stat"
set -- ${stat##*) }
id="$$.${20}@$host"

# `ln` makes the file whole or, if it is there already, not at all.
printf '%s\n' "$id" > "$id_file.$$"
ln "$id_file.$$" "$id_file" 2> /dev/null
won=$?
rm -f "$id_file.$$"
cat "$id_file"
[ $won = 0 ] || exit 0

cd "$directory" || exit 1
exec < /dev/null >> "$log" 2>&1
code=143
if [ -z "$stopped" ]; then
    "$script" &
    child=$!
    [ -z "$stopped" ] || kill -TERM "$child" # it came before we knew the child
    while :; do
        wait "$child"
        code=$?
        kill -0 "$child" 2> /dev/null || break # else it was a signal to us that ended the wait
    done
    if [ $code -gt 128 ]; then # that may have been our signal too, and the script have ended just after it
        wait "$child"
        again=$?
        [ $again = 127 ] || code=$again
    fi
fi
record=${id_file%/*}/$id.exit
printf '%s\n' "$code" > "$record.new" && mv "$record.new" "$record"
