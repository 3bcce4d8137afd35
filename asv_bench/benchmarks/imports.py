"""Import time in a fresh process; NumPy's own beside it, since it is part of fastce's."""


def timeraw_import_fastce() -> str:
    """Return the statement to time."""
    return "import fastce"


def timeraw_import_numpy() -> str:
    """Return the statement to time."""
    return "import numpy"
