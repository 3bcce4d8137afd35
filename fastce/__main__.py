"""``python -m fastce``: see ``python -m fastce --help``."""

import gc
import signal
import sys

from fastce.cli import main

# As Ctrl+C: what is half written is taken away again.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
gc.freeze()  # what is loaded by now is not looked through for garbage as Python ends
raise SystemExit(main())
