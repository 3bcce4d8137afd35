"""``python -m fastce info``."""

import argparse

import fastce


def run(args: argparse.Namespace) -> None:
    """Print the library's configuration."""
    fastce.show_config()
