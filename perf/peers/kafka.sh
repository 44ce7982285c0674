#!/usr/bin/env bash
# Ringmain (durable: flushed before it is acknowledged) beside Apache Kafka, once as it comes (page cache) and once with a flush per
# message, under one client: librdkafka, by its own load generator for throughput, by perf/peers/latency for latency (from a message's time to
# leave to the consumer that has it). One broker at a time on core 1, the client on core 0, in turn, ROUNDS times; the table has medians.
# Everything comes from public registries, into target/peers.
# Usage: perf/peers/kafka.sh [RESULT.tsv]      ROUNDS=3 SMALL=10000000 LARGE=2000000 SECONDS_EACH=5 MEMORY=192M
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
into=$root/target/peers
result=${1:-$into/kafka.tsv}
ROUNDS=${ROUNDS:-3} SMALL=${SMALL:-10000000} LARGE=${LARGE:-2000000} SECONDS_EACH=${SECONDS_EACH:-5} MEMORY=${MEMORY:-192M}
program=${RINGMAIN:-$root/target/release/ringmain}
jars=${CARGO_TARGET_DIR:-$root/target}/clients/java
rdk=$into/rdkafka_performance
latency=$into/latency/release/kafka-latency
address=127.0.0.1:19192
[ -x "$program" ] || cargo build --release --quiet
mkdir -p "$into"

install_generator() {
    [ -x "$rdk" ] && return
    local fetch=$into/fetch source
    mkdir -p "$fetch/src"
    printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n[dependencies]\nrdkafka-sys = "=4.10.0+2.12.1"\n' >"$fetch/Cargo.toml"
    : >"$fetch/src/lib.rs"
    (cd "$fetch" && cargo fetch --quiet)
    source=$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/rdkafka-sys-4.10.0+2.12.1/librdkafka | head -n 1)
    rm -rf "$into/build" && cp -r "$source" "$into/build"
    (
        cd "$into/build"
        ./configure --disable-ssl --disable-gssapi --disable-curl --disable-zstd --disable-lz4-ext --disable-debug-symbols >/dev/null
        make -s -j2 -C src librdkafka.a >/dev/null 2>&1
        cc -O2 -Isrc -o "$rdk" examples/rdkafka_performance.c src/librdkafka.a $(sed -n 's/^LIBS+= *//p' Makefile.config) -lpthread -lm
    )
}

broker=
data=$into/data
stop() {
    [ -z "$broker" ] || { kill "$broker" && wait "$broker" || true; } 2>/dev/null
    broker=
    rm -rf "$data"
}
trap stop EXIT

start() { # ringmain | kafka | kafka-flush
    stop
    mkdir -p "$data"
    if [ "$1" = ringmain ]; then
        taskset -c 1 "$program" serve --data "$data" --cores 1 --memory "$MEMORY" --kafka "$address" --kafka-single-port --native off --admin off 2>"$into/log" &
    else
        cat >"$into/server.properties" <<P
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:19193
listeners=PLAINTEXT://$address,CONTROLLER://127.0.0.1:19193
advertised.listeners=PLAINTEXT://$address,CONTROLLER://127.0.0.1:19193
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$data
offsets.topic.replication.factor=1
log.retention.bytes=4000000000
$([ "$1" = kafka ] || echo log.flush.interval.messages=1)
P
        CLASSPATH="$jars/*" java kafka.tools.StorageTool format --standalone -t MkU3OEVBNTcwNTJENDM2Qg -c "$into/server.properties" >/dev/null 2>&1
        CLASSPATH="$jars/*" taskset -c 1 java -Xms1g -Xmx1g -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 kafka.Kafka "$into/server.properties" >"$into/log" 2>&1 &
    fi
    broker=$!
    for _ in $(seq 600); do
        (exec 3<>"/dev/tcp/${address%:*}/${address#*:}") 2>/dev/null && break
        sleep 0.1
    done
    # Compiles what is hot, and makes the topics.
    local topic
    for topic in small large; do "$rdk" -P -t "warm-$topic" -s 100 -c 1000000 -a 1 -b "$address" -q >/dev/null 2>&1; done
}

cpu_seconds() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/^.*\) /, ""); print ($12 + $13) / hz }' "/proc/$broker/stat"; }
rss_mib() { awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/$broker/status"; }

measure() { # round broker what messages command...
    local round=$1 name=$2 what=$3 messages=$4 before after rate
    shift 4
    before=$(cpu_seconds)
    rate=$(taskset -c 0 "$@" 2>&1 | tr '\r' '\n' | sed -n 's/.* \([0-9][0-9]*\) msgs\/s.*/\1/p' | tail -n 1)
    after=$(cpu_seconds)
    row "$round" "$name" "$what" "${rate:-0}" "$messages" "$before" "$after" '' '' ''
}

row() { # round broker what rate messages cpu-before cpu-after p50 p99 p99.9
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$2" "$3" "$1" "$4" \
        "$(awk -v a="$7" -v b="$6" -v n="$5" 'BEGIN { printf "%.4f", (a - b) * 1e6 / n }')" "$(rss_mib)" "$8" "$9" "${10}" | tee -a "$result" >&2
}

wait_for() { # round broker what arguments of the latency program...
    local round=$1 name=$2 what=$3 before after line
    shift 3
    before=$(cpu_seconds)
    line=$(taskset -c 0 "$latency" --broker "$address" --seconds "$SECONDS_EACH" "$@") || line=
    after=$(cpu_seconds)
    field() { sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" <<<"$line"; }
    row "$round" "$name" "$what" "$(field messages_per_second)" "$(field messages)" "$before" "$after" "$(field p50)" "$(field p99)" "$(field p999)"
}

tests/clients/install.sh >/dev/null || true
install_generator
CARGO_TARGET_DIR=$into/latency cargo build --release --locked --quiet --manifest-path perf/peers/latency/Cargo.toml
printf 'broker\twhat\tround\tmessages_per_second\tbroker_cpu_s_per_million\trss_mib\tp50_us\tp99_us\tp999_us\n' >"$result"
tune=(-a -1 -b "$address" -q -X linger.ms=5 -X batch.size=262144 -X batch.num.messages=10000 -X queue.buffering.max.messages=500000)
for round in $(seq "$ROUNDS"); do
    for name in ringmain kafka kafka-flush; do
        start $name
        measure "$round" $name 'produce 100 B' "$SMALL" "$rdk" -P -t "small$round" -s 100 -c "$SMALL" "${tune[@]}"
        measure "$round" $name 'consume 100 B' "$SMALL" "$rdk" -C -t "small$round" -p 0 -o beginning -c "$SMALL" -e -q -b "$address"
        measure "$round" $name 'produce 1 KiB' "$LARGE" "$rdk" -P -t "large$round" -s 1024 -c "$LARGE" "${tune[@]}"
        measure "$round" $name 'consume 1 KiB' "$LARGE" "$rdk" -C -t "large$round" -p 0 -o beginning -c "$LARGE" -e -q -b "$address"
        wait_for "$round" $name 'one in flight' --topic "one$round"
        wait_for "$round" $name '50 k/s' --topic "some$round" --rate 50000
        wait_for "$round" $name '200 k/s' --topic "many$round" --rate 200000 --linger-ms 1
    done
done
stop
python3 - "$result" <<'P'
import collections, statistics, sys
rows = [line.rstrip("\n").split("\t") for line in open(sys.argv[1])][1:]
cells = collections.defaultdict(list)
for broker, what, _, *numbers in rows:
    cells[what, broker].append([float(number or "nan") for number in numbers])
medians = {cell: [statistics.median(column) for column in zip(*values)] for cell, values in cells.items()}
print(f"{'':15}{'broker':13}{'messages/s':>12}{'× Kafka':>9}{'CPU s/M':>10}{'× Kafka':>9}{'RSS MiB':>9}{'p50 µs':>9}{'p99':>9}{'p99.9':>9}{'× Kafka':>9}")
for (what, broker), (rate, cpu, rss, p50, p99, p999) in sorted(medians.items()):
    base = medians[what, "kafka"]
    of = lambda value, other: f"{value / other:9.2f}" if other and value == value else f"{'':9}"
    us = lambda value: f"{value:9,.0f}" if value == value else f"{'':9}"
    print(f"{what:15}{broker:13}{rate:12,.0f}{of(rate, base[0])}{cpu:10.3f}{of(cpu, base[1])}{rss:9.0f}{us(p50)}{us(p99)}{us(p999)}{of(p999, base[5])}")
P
