#!/usr/bin/env bash
# Fuzzes a decoder with libFuzzer on stable Rust: `scripts/fuzz.sh TARGET [libFuzzer's options]`, for 60 s unless they say otherwise. New
# inputs that reach new code go to fuzz/corpus/TARGET (commit the ones worth keeping), a crash is written to fuzz/ and printed.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
target=${1:?a target: $(ls targets | sed 's/\.rs$//' | tr '\n' ' ')}
shift
# What cargo-fuzz passes, less the sanitizer, which needs a nightly compiler. A list of 64 MiB in one piece is a finding.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS=${RUSTFLAGS//$'\n'/ }
exec cargo run --release --target "$(rustc -vV | sed -n 's/^host: //p')" --bin "$target" -- -max_total_time=60 -max_len=65536 -malloc_limit_mb=64 "$@" "corpus/$target"
