"""``python -m fastce``: see ``python -m fastce --help``."""

from fastce.cli import main

raise SystemExit(main())
