#!/usr/bin/env bash
# Hours of what test.sh does for minutes: soak.sh SEED [KILLS]. The same seed gives the same load and the same pauses between
# kills; what the kernel does in between is its own.
set -euo pipefail
cd "$(dirname "$0")/.."

export RINGMAIN_TEST_SEED=${1:?usage: scripts/soak.sh SEED [KILLS]}
export RINGMAIN_TEST_KILLS=${2:-10000}
exec cargo test --profile checked -p ringmain --test it -- --nocapture crash::
