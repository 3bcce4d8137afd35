"""``python -m fastce``: see ``python -m fastce --help``."""

import gc
import os
import signal
import sys

from fastce.cli import main


def run() -> int:
    """Run `main`; where its output goes nowhere its exit code is 1, without a word if nobody reads on."""
    try:
        try:
            return main()
        finally:
            print(end="", flush=True)  # what fails as Python ends, nobody catches
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more
        if not isinstance(error, BrokenPipeError):
            print(f"fastce: {error}", file=sys.stderr)
        return 1


# As Ctrl+C: what is half written is taken away again.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
gc.freeze()  # what is loaded by now is not looked through for garbage as Python ends
raise SystemExit(run())
