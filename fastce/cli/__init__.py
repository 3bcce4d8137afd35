"""The command line: ``python -m fastce {demo,score,bench,info}``.

This file parses arguments; each command is a module beside it with one function, ``run(args)``.
Nothing but the standard library is imported here, so that a missing extra is one clear line.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from fastce.cli.common import UserError, require


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or 2 where the user has to act."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        require(args.extra, *args.needs)
        import_module(f"fastce.cli.{args.command}").run(args)
    except UserError as error:
        print(f"fastce {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastce", description="Cross-entropy for NumPy, fast and to the last digit."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_score(commands)
    _add_bench(commands)
    info = commands.add_parser("info", help="what fastce runs on: level, OpenMP, threads, versions")
    info.set_defaults(extra="", needs=())
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        "demo",
        help="train on handwritten digits, then compare loss and gradient with SciPy and NumPy",
        description="Train a softmax regression on scikit-learn's handwritten digits with fastce, "
        "then compare loss and gradient of its logits with SciPy and naive NumPy: digits and time. "
        "With two .npy files, compare on those instead.",
    )
    demo.add_argument(
        "files",
        nargs="*",
        metavar="LOGITS.npy LABELS.npy",
        help="your own logits (classes on the last axis) and integer labels (-100: ignored)",
    )
    demo.add_argument("--rounds", type=_positive, default=20, help="timing rounds (20)")
    demo.add_argument("--threads", type=_positive, help="threads (the library's default)")
    demo.set_defaults(extra="demo", needs=("rich", "scipy", "sklearn"))


def _add_score(commands: argparse._SubParsersAction) -> None:
    score = commands.add_parser(
        "score",
        help="perplexity and accuracy of saved logits, or of hidden states and a head",
        description="Score tokens by saved logits, classes on the last axis and one token for each row, or "
        "by hidden states and a head, whose logits are never held as a whole. Files: .npy, .npz:key, "
        ".safetensors:key, of float32, float64, float16 or bfloat16; tokens also .txt. They are mapped: "
        "larger than memory is fine.",
    )
    score.add_argument(
        "files", nargs="*", metavar="[LOGITS] TOKENS", help="the logits, unless --hidden; the tokens"
    )
    score.add_argument("--hidden", metavar="FILE", help="hidden states, in place of the logits")
    score.add_argument("--head", metavar="FILE", help="the head's weights, classes x features")
    score.add_argument("--bias", metavar="FILE", help="and its bias")
    score.add_argument("--top-k", type=int, default=0, metavar="K", help="most probable tokens to write (0)")
    score.add_argument("--temperature", type=float, default=1.0, help="divides the logits (1)")
    score.add_argument("--softcap", type=float, help="c of c tanh(x / c) in place of the logits x")
    score.add_argument(
        "--ignore-index", type=int, default=-100, metavar="TOKEN", help="rows to leave out (-100)"
    )
    score.add_argument(
        "--bytes", type=_positive, metavar="N", help="of the text that was tokenized: bits per byte"
    )
    score.add_argument("--output", metavar="FILE", help="one line a token: .npz, .parquet or .csv")
    score.add_argument("--plot", metavar="FILE.png", help="losses, running perplexity, reliability")
    score.add_argument("--threads", type=_positive, help="threads (the library's default)")
    score.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a dask cluster that scores LOGITS TOKENS LOGITS TOKENS ..."
    )
    score.set_defaults(extra="score", needs=("rich",))


def _add_bench(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser(
        "bench",
        help="time against a copy of the same bytes and other libraries; errors against bounds",
        description="Time loss, and loss + gradient into a given array, over shapes: against a "
        "copy of the same bytes and against every library that is installed. Times are the best "
        "of interleaved rounds, in one process, all libraries on the same number of threads. "
        "The accuracy suite times nothing: it needs no rivals and takes about a minute.",
    )
    bench.add_argument(
        "--suite",
        choices=("peers", "goals", "accuracy", "boosting", "estimators", "torch", "all"),
        default="peers",
        help="peers: shapes against other libraries; goals: fastce's own limits (copy, read, "
        "class axis first, small calls, levels, bfloat16); accuracy: errors in ULP against their "
        "bounds, at every level; boosting: objectives for trees against the libraries' own; "
        "estimators: fits of logistic regressions against scikit-learn and its extensions; "
        "torch: whole steps of loss and backward in PyTorch",
    )
    bench.add_argument(
        "--shapes", type=_list, metavar="8192x1000,...", help="rows x classes, separated by commas"
    )
    bench.add_argument("--dtype", type=_list, metavar="float32,float64", help="(float32)")
    bench.add_argument("--rivals", type=_list, metavar="torch,numpy,...", help="all installed ones; or none")
    bench.add_argument(
        "--only", default="", metavar="TEXT", help="suites estimators and torch: data or steps of such a name"
    )
    bench.add_argument("--rounds", type=_positive, help="interleaved rounds (10; 3 with --quick)")
    bench.add_argument("--threads", type=_positive, help="threads (the library's default)")
    bench.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    bench.add_argument("--plot", metavar="FILE.png", help="draw the peers suite")
    bench.add_argument("--json", metavar="FILE.json", help="keep the peers suite and what it ran on")
    bench.set_defaults(extra="bench", needs=("rich",))


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return number


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
