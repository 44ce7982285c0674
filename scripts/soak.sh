#!/usr/bin/env bash
# Hours of what test.sh does for minutes: soak.sh SEED [SIMULATED-LIVES [KILLS]]. The same seed gives the same simulated lives, and
# the same load and pauses between real kills; what the kernel does in between is its own.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=${1:?usage: scripts/soak.sh SEED [SIMULATED-LIVES [KILLS]]}
lives=${2:-1000000}
cargo run --release --example simulate -- --seeds "$((seed * lives))..$(((seed + 1) * lives))"
cargo test --profile checked -p ringmain --lib -- --ignored --nocapture transactions_are_all_or_nothing
export RINGMAIN_TEST_SEED=$seed RINGMAIN_TEST_KILLS=${3:-10000}
exec cargo test --profile checked -p ringmain --test it -- --nocapture crash::
