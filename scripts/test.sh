#!/usr/bin/env bash
# Everything that CI runs, on a fresh machine too: style, lints, unit tests, simulated crashes, documentation examples, and
# the real program driven, killed and restarted, also under Kafka's clients (RINGMAIN_SKIP_CLIENTS=1 where there is no network to get
# them from). About 25 minutes on 2 cores. The last line is cargo's verdict.
set -euo pipefail
cd "$(dirname "$0")/.."

stage() {
    local name=$1 began=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@" || { printf '== %s: FAILED after %d s\n' "$name" $((SECONDS - began)); exit 1; }
    printf '== %s: ok, %d s (%d s in all)\n' "$name" $((SECONDS - began)) "$SECONDS"
}

prepare() {
    if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
        . "$HOME/.cargo/env"
    fi
    command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs, then run this again"; return 1; }
    if ! command -v cc >/dev/null; then
        local sudo=
        [ "$(id -u)" = 0 ] || sudo=sudo
        $sudo apt-get update -qq
        DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends gcc libc6-dev
    fi
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    cargo --version
    uname -sr
}

clients() {
    [ -n "${RINGMAIN_SKIP_CLIENTS:-}" ] && { echo "RINGMAIN_SKIP_CLIENTS is set: nothing is tested with Kafka's clients"; return; }
    tests/clients/install.sh
}

stage "prepare" prepare
stage "clients of the field, from public registries" clients
stage "formatting" cargo fmt --all --check
stage "lints" cargo clippy --workspace --all-targets --all-features --quiet -- -D warnings
# Optimised, because simulated lives and loops of crashes are long, with the assertions that a release leaves out.
stage "unit tests of the broker" cargo test --profile checked --quiet -p ringmain --lib --bins
stage "benchmarks, at a small size" cargo test --profile checked --quiet -p ringmain --bench '*'
stage "wire, client, harness" cargo test --profile checked --quiet --workspace --exclude ringmain --all-features --all-targets
stage "examples in the documentation" cargo test --profile checked --quiet --workspace --all-features --doc
printf '\n== 10,000 simulated lives of a log, then the real program: real input, faults, %s kills\n' "${RINGMAIN_TEST_KILLS:-200}"
exec cargo test --profile checked -p ringmain --test it
