#!/usr/bin/env bash
# The whole table of figures, into perf/results/<date>-<machine>/. Takes some minutes; leave the machine alone meanwhile.
# Method: perf/README.md. One run of the main job is `cargo run --release -- bench`.
set -euo pipefail
cd "$(dirname "$0")/.."

out="perf/results/$(date -u +%F)-${1:-$(uname -n)}"
mkdir -p "$out"
cargo build --release
ringmain=${CARGO_TARGET_DIR:-target}/release/ringmain

run() {
    local name=$1
    shift
    printf '== %s: bench %s\n' "$name" "$*"
    "$ringmain" bench "$@" --out "$out/$name" --format json >"$out/$name.json"
}

run limits limits
run produce-singles produce --size 100 --batch 1 --in-flight 64 --connections 16
run produce-100 produce --size 100 --batch 100 --in-flight 8 --connections 16
run produce-100-memory produce --size 100 --batch 100 --in-flight 8 --connections 16 --durability memory
run produce-1000 produce --size 100 --batch 1000 --in-flight 8 --connections 16
run produce-1k produce --size 1024 --batch 128 --in-flight 8 --connections 16
run produce-synchronous produce --size 100 --batch 1000 --in-flight 1 --connections 1
run consume-hot consume --size 100 --batch 100
run consume-hot-1k consume --size 1024 --batch 128
run consume-cold consume --size 1024 --batch 128 --cold
run ping-durable ping --size 100
run ping-memory ping --size 100 --durability memory
run e2e-open-loop e2e --size 100 --batch 100 --rate 1000000
printf '== results are in %s\n' "$out"
