#!/usr/bin/env bash
# How long a start takes, and what it reads, whatever the directory's size: after a clean stop and after kills under load.
# Usage: scripts/start.sh [GIB ...]   (default 4 16; needs that much room beside the current directory)
set -euo pipefail
program=${RINGMAIN:-$(dirname "$0")/../target/release/ringmain}
[ -x "$program" ] || { echo "build it first: cargo build --release"; exit 1; }
work=$(mktemp -d ./start-XXXXXX)
port=7399 broker=
trap '[ -z "$broker" ] || kill "$broker" 2>/dev/null || true; rm -rf "$work"' EXIT

serve() {
    "$program" serve --data "$work/data" --cores 1 --memory 1G --native "127.0.0.1:$port" --kafka off --admin off 2>"$work/log" &
    broker=$!
    until grep -q '^ready' "$work/log"; do
        kill -0 "$broker" 2>/dev/null || { cat "$work/log"; exit 1; }
        sleep 0.005
    done
}

load() {
    "$program" bench produce --size 1024 --batch 128 --topic big --connect "127.0.0.1:$port" --warmup 0s --no-verify "$@" >/dev/null 2>&1
}

printf '%8s  %-12s  %9s  %14s\n' directory stopped ready 'read at start'
for gib in "${@:-4 16}"; do
    for gib in $gib; do
        rm -rf "$work/data"
        serve
        "$program" topic create big --partitions 4 --connect "127.0.0.1:$port" >/dev/null
        load --count $((gib << 20))
        for signal in TERM KILL KILL; do
            if [ $signal = KILL ]; then
                load --duration 60s & loader=$!
                sleep 2
            fi
            kill -$signal "$broker"
            wait "$broker" 2>/dev/null || true
            [ $signal = TERM ] || wait "$loader" 2>/dev/null || true
            serve
            read_bytes=$(awk '/^read_bytes/ { print $2 }' "/proc/$broker/io")
            ready=$(grep -o 'ready after [0-9]* ms' "$work/log")
            printf '%4d GiB  %-12s  %9s  %10d KiB\n' "$gib" "$([ $signal = TERM ] && echo cleanly || echo by\ kill\ -9)" "${ready#ready after }" $((read_bytes >> 10))
        done
        kill "$broker"
        wait "$broker" 2>/dev/null || true
        broker=
    done
done
