"""What the Python clients' checks share: the records to send, and a failure that says what was expected."""

import hashlib
import os
import sys
import time
import traceback


class Failure(Exception):
    """A check that didn't hold."""


def check(holds, text, *values):
    if not holds:
        raise Failure(": ".join([text, *(repr(value)[:400] for value in values)]))


def equal(found, expected, text):
    check(found == expected, text, found, expected)


def within(seconds, attempt, text):
    """Calls `attempt` until it returns something true; that."""
    end = time.monotonic() + seconds
    while True:
        found = attempt()
        if found:
            return found
        check(time.monotonic() < end, f"not within {seconds} s: {text}", found)
        time.sleep(0.05)


def value(seed, length):
    """Bytes that are the same for the same seed; half of them compress."""
    block = hashlib.sha256(str(seed).encode()).digest()
    return (block + bytes(32)) * (length // 64) + (block + bytes(32))[: length % 64]


# Yesterday: records that are years old are soon deleted.
BASE = int(time.time()) // 86_400 * 86_400_000 - 86_400_000

# Key, value, headers, timestamp: everything a record can be.
AWKWARD = [
    (None, b"", [], BASE + 0),
    (b"", b"x", [], BASE + 1),
    (b"key", None, [], BASE + 1),
    (None, None, [("only", b"headers")], BASE + 2),
    ("schlüssel-→".encode(), "größe-🦀".encode(), [("a", b"1"), ("a", b"2"), ("b", b""), ("a", b"1")], BASE + 500),
    (b"null header", b"v", [("h", None), ("", b"empty name")], BASE + 400),
    (bytes(range(256)), bytes(range(255, -1, -1)), [("binary", bytes(range(256)))], BASE + 1000),
    (b"16K", value(1, 16_384), [], BASE + 2000),
    (b"100K", value(2, 100_000), [("n", str(n).encode()) for n in range(50)], BASE + 3000),
    (b"900K", value(3, 900 * 1024), [], BASE + 4000),
    (b"after", b"end", [("last", b"1")], BASE + 5000),
]


def run(scenarios):
    """`PROGRAM HOST:PORT SCENARIO [ARGUMENTS]`; says ok or what failed."""
    address, name, arguments = sys.argv[1], sys.argv[2], sys.argv[3:]
    try:
        scenarios[name](address, *arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        print(f"FAILED {name}", flush=True)
        # Clients with threads of their own must not keep a failed check alive.
        os._exit(1)
    print(f"ok {name}", flush=True)
    os._exit(0)
