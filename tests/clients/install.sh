#!/usr/bin/env bash
# Gets the clients of the field that tests/it/kafka drives, newest versions, from public package registries, into DIRECTORY
# (default target/clients): kcat (Debian), confluent-kafka and kafka-python (PyPI), Kafka's own command-line tools and Kafka Streams (Maven
# Central, with a JDK from Debian if there is none), a program on the rdkafka crate (crates.io), kafkajs (npm); and for the sink OpenSearch
# (Maven Central; the last version for a JDK of Debian's stable release). What is there already is not fetched again; the tests
# call this by themselves. Prints one line per client, and what went wrong for one that is missing.
# Usage: install.sh [DIRECTORY [CLIENT ...]]   (default: all of these; rsyslog, a log shipper, only when it is named)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
into=${1:-${CARGO_TARGET_DIR:-$root/target}/clients}
KAFKA=4.3.1
SEARCH=2.19.1
mkdir -p "$into"
into=$(cd "$into" && pwd)
exec 9>"$into/lock"
flock 9

debian() { # packages
    local missing=() package
    for package; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
    [ ${#missing[@]} -eq 0 ] && return
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

kcat_() { command -v kcat >/dev/null || debian kcat; }

python_() {
    [ -e "$into/python/complete" ] && return
    python3 -c 'import venv, ensurepip' 2>/dev/null || debian python3 python3-venv || return
    # The codecs of kafka-python are packages of their own.
    python3 -m venv --clear "$into/python" &&
        "$into/python/bin/pip" install -q --disable-pip-version-check confluent-kafka kafka-python crc32c lz4 zstandard python-snappy &&
        "$into/python/bin/pip" list --disable-pip-version-check --format freeze >"$into/python/complete"
}

# Jars by the dependencies that their descriptions name, without Maven itself.
java_() {
    { command -v java && command -v javac; } >/dev/null || debian default-jdk-headless || return
    command -v python3 >/dev/null || debian python3 || return
    local to=$into/java
    if [ ! -e "$to/complete-$KAFKA-streams" ]; then
        rm -rf "$to" && mkdir -p "$to"
        python3 "$here/maven.py" "$to" "org.apache.kafka:kafka_2.13:$KAFKA" "org.apache.kafka:kafka-tools:$KAFKA" \
            "org.apache.kafka:kafka-streams:$KAFKA" org.slf4j:slf4j-simple:1.7.36 || return
    fi
    local program
    for program in Check Streams; do
        [ "$to/$program.class" -nt "$here/$program.java" ] || javac -d "$to" -cp "$to/*" "$here/$program.java" || return
    done
    touch "$to/complete-$KAFKA-streams"
}

# The engine and its door, without the tools around them. Its description doesn't name the logging that it can't do without.
search_() {
    { command -v java && command -v javac; } >/dev/null || debian default-jdk-headless || return
    command -v python3 >/dev/null || debian python3 || return
    local to=$into/search
    if [ ! -e "$to/complete-$SEARCH" ]; then
        rm -rf "$to" && mkdir -p "$to"
        python3 "$here/maven.py" "$to" "org.opensearch:opensearch:$SEARCH" "org.opensearch.plugin:transport-netty4-client:$SEARCH" \
            org.apache.logging.log4j:log4j-core:2.21.0 org.slf4j:slf4j-nop:1.7.36 || return
    fi
    if [ ! "$to/Search.class" -nt "$here/Search.java" ]; then
        javac -d "$to" -cp "$to/*" "$here/Search.java" || return
    fi
    touch "$to/complete-$SEARCH"
}

# No binaries in it, and nothing that it needs.
node_() {
    [ -e "$into/node/complete" ] && return
    { command -v node && command -v npm; } >/dev/null || debian nodejs npm || return
    rm -rf "$into/node" && mkdir -p "$into/node" && cd "$into/node" &&
        npm install --silent --no-audit --no-fund --no-package-lock --prefix . kafkajs && node -e 'require("kafkajs")' && touch complete
}

# A log shipper, for scripts/log-pipeline.sh: unpacked, not installed, because the package starts a daemon for the whole machine.
rsyslog_() {
    local to=$into/rsyslog package libraries
    [ -x "$to/run" ] && return
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "only Debian's package is known here"; return 1; }
    rm -rf "$to" && mkdir -p "$to/packages"
    shipper_packages "$to/packages" || { as_root apt-get update -qq && shipper_packages "$to/packages"; } || return
    for package in "$to"/packages/*.deb; do dpkg -x "$package" "$to" || return; done
    libraries=$(dirname "$(find "$to/usr/lib" -name omkafka.so -print -quit)")/..
    # One process, so that whoever starts it can end it.
    printf '#!/bin/sh\nexec env LD_LIBRARY_PATH="%s" "%s" -M "%s" "$@"\n' "$libraries" "$to/usr/sbin/rsyslogd" "$libraries/rsyslog" >"$to/run.new"
    chmod +x "$to/run.new" && "$to/run.new" -v && mv "$to/run.new" "$to/run"
}

shipper_packages() { # DIRECTORY
    (cd "$1" && apt-get download -qq rsyslog rsyslog-kafka libestr0 libfastjson4 librdkafka1)
}

rdkafka_() {
    [ -x "$into/rdkafka-check" ] && [ -z "$(find "$here/rdkafka" -newer "$into/rdkafka-check" -type f -print -quit)" ] && return
    command -v cargo >/dev/null || { [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; }
    { command -v cc && command -v make; } >/dev/null || debian gcc g++ libc6-dev make || return
    (cd "$here/rdkafka" && CARGO_TARGET_DIR="$into/rdkafka-build" ${CARGO:-cargo} build --quiet --release --locked) &&
        cp "$into/rdkafka-build/release/rdkafka-check" "$into/rdkafka-check.new" && mv "$into/rdkafka-check.new" "$into/rdkafka-check"
}

[ $# -gt 1 ] || set -- "$into" kcat python java rdkafka node search
failed=0
for client in "${@:2}"; do
    if said=$("${client}_" 2>&1); then
        echo "$client: ready"
    else
        failed=1
        echo "$client: MISSING"
        printf '%s\n' "$said" | tail -n 15
    fi
done
exit $failed
