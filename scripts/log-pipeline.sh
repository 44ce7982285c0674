#!/usr/bin/env bash
# Log files into a search engine, with real parts: rsyslog tails a file into a topic, through Ringmain's Kafka door, and
# `ringmain sink elasticsearch` carries the topic on. The broker is killed (-9) in the middle; every line is found once.
# Usage: scripts/log-pipeline.sh [LINES] [URL]   (default 20000 lines; without the URL of an engine, OpenSearch is fetched and started)
# Exit codes: 1 = a line is missing or there twice, 77 = a part can't be had here.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
lines=${1:-20000} url=${2:-}
target=${CARGO_TARGET_DIR:-$here/../target}
program=${RINGMAIN:-$target/release/ringmain}
parts=${CLIENTS:-$target/clients}
[ -x "$program" ] || { echo "build it first: cargo build --release"; exit 1; }
command -v curl >/dev/null || { echo "curl is missing"; exit 77; }
"$here/../tests/clients/install.sh" "$parts" rsyslog $([ -n "$url" ] || echo search) || exit 77
parts=$(cd "$parts" && pwd)

work=$(mktemp -d ./log-pipeline-XXXXXX)
work=$(cd "$work" && pwd)
running=()
finish() {
    local code=$?
    # The youngest first: nobody loses what it writes to.
    for ((at = ${#running[@]} - 1; at >= 0; at--)); do kill "${running[at]}" 2>/dev/null || true; done
    wait || true
    if [ $code = 0 ]; then rm -rf "$work"; else echo "logs of all parts: $work"; fi
}
trap finish EXIT

within() { # SECONDS WHAT CONDITION
    local until=$((SECONDS + $1))
    until eval "$3"; do
        [ $SECONDS -lt $until ] || { echo "not within $1 s: $2"; exit 1; }
        sleep 0.1
    done
}

# Below the ports that systems give away: a restart finds them free, those of the shards behind them too.
port=$((11000 + RANDOM % 80 * 100))
native=127.0.0.1:$port kafka=127.0.0.1:$((port + 90))
serve() {
    : >"$work/broker.log"
    "$program" serve --data "$work/data" --memory 256M --segment-bytes 16M --native $native --kafka $kafka --kafka-single-port --admin off 2>"$work/broker.log" &
    broker=$!
    running+=($broker)
    within 30 "the broker is ready" "grep -q ^ready '$work/broker.log'"
    # A restart takes the same ports.
    native=$(sed -n 's/^ready .*native=\([^ ]*\).*/\1/p' "$work/broker.log")
    kafka=$(sed -n 's/^ready .*kafka=\([^ ]*\).*/\1/p' "$work/broker.log")
}

serve
export RINGMAIN_CONNECT=$native
"$program" topic create logs --partitions 4
echo "broker: native $native, Kafka $kafka"

if [ -z "$url" ]; then
    url=http://127.0.0.1:$((port + 95))
    mkfifo "$work/engine.stdin"
    java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx512m -cp "$parts/search/*:$parts/search" Search "$work/engine" $((port + 95)) \
        <"$work/engine.stdin" >"$work/engine.log" 2>&1 &
    running+=($!)
    exec 8>"$work/engine.stdin"
    within 60 "the engine is ready" "grep -q ^ready '$work/engine.log'"
fi
index=log-pipeline-$$
echo "engine: $url, index $index"

cat >"$work/rsyslog.conf" <<CONF
global(workDirectory="$work" internalmsg.severity="info")
module(load="imfile")
module(load="omkafka")
template(name="document" type="list" option.jsonf="on") {
    property(outname="@timestamp" name="timereported" dateFormat="rfc3339" format="jsonf")
    property(outname="host" name="hostname" format="jsonf")
    property(outname="file" name="\$!metadata!filename" format="jsonf")
    property(outname="message" name="msg" format="jsonf")
}
ruleset(name="ship") {
    action(type="omkafka" broker=["$kafka"] topic="logs" template="document" partitions.auto="on" resubmitOnFailure="on"
        confParam=["enable.idempotence=true", "acks=all", "compression.codec=lz4", "linger.ms=5", "message.timeout.ms=120000"])
}
input(type="imfile" File="$work/app.log" Tag="app:" ruleset="ship" addMetadata="on")
CONF
: >"$work/app.log"
"$parts/rsyslog/run" -n -f "$work/rsyslog.conf" -i "$work/rsyslog.pid" >"$work/rsyslog.log" 2>&1 &
running+=($!)
"$program" sink elasticsearch --url "$url" --topic logs --index $index >"$work/sink.out" 2>"$work/sink.log" &
sink=$!
running+=($sink)

began=$(date +%s%N)
line() { printf 'request %d from 10.0.%d.%d took %d ms: "GET /item?id=%d"\n' $1 $(($1 / 250 % 250)) $(($1 % 250)) $(($1 % 977)) $1; }
for ((n = 0; n < lines; n++)); do line $n; done >>"$work/app.log" &
writer=$!
within 60 "half of the lines are stored" "[ \$('$program' topic describe logs --format json 2>/dev/null | grep -o '\"high_watermark\":[0-9]*' | awk -F: '{ n += \$2 } END { print n + 0 }') -ge $((lines / 2)) ]"
kill -9 $broker
wait $broker 2>/dev/null || true
echo "broker: killed with -9 half way, and started again"
serve
wait $writer
found() {
    curl -s -m 5 -X POST "$url/$index/_refresh" >/dev/null
    curl -s -m 5 "$url/$index/_count" | sed -n 's/.*"count":\([0-9]*\).*/\1/p'
}
within 120 "$lines documents in the index" 'documents=$(found) && [ "${documents:-0}" -ge $lines ]'
took_ms=$((($(date +%s%N) - began) / 1000000))
kill -TERM $sink
wait $sink

stored=$("$program" topic describe logs --format json | grep -o '"high_watermark":[0-9]*' | awk -F: '{ n += $2 } END { print n }')
documents=$(found)
different=$("$program" consume logs --exit-at-end | grep -o 'id=[0-9]*' | sort -u | wc -l)
printf '%-28s %s\n' "lines written" $lines "records in the topic" $stored "different lines among them" $different "documents in the index" $documents "from first line to last, ms" $took_ms
echo "sink: $(cat "$work/sink.out")"
[ "$stored" = $lines ] && [ "$different" = $lines ] && [ "$documents" = $lines ] || { echo "they aren't equal"; exit 1; }
