"""``python -m fastce score``: perplexity and accuracy of saved logits, or of hidden states and a head."""

import argparse
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import fastce
from fastce import inference
from fastce._kernels.entry.arrays import float_array
from fastce.cli.common import PICTURES, UserError, require, three_digits, time_text, wanted
from fastce.cli.files import Array, open_array, read_tokens
from fastce.inference.scoring import perplexity_of

HEAD_MEMORY = 128 * 2**20  # bytes, of the logits of hidden states
TOKENS_AT_ONCE = 2**16  # that are checked


class Totals:
    """What the summary needs of all tokens."""

    def __init__(self) -> None:
        self.n = self.loss = self.square = self.top1 = self.top5 = self.entropy = 0

    def add(self, scores: inference.TokenLogprobs, used: np.ndarray) -> None:
        """Count the rows that are not ignored."""
        loss, rank = -scores.logprob[used].astype(np.float64), scores.rank[used]
        self.n += loss.size
        self.loss += float(loss.sum())
        self.square += float(np.square(loss).sum())
        self.entropy += float(scores.entropy[used].sum(dtype=np.float64))
        self.top1 += int((rank == 1).sum())
        self.top5 += int(((rank >= 1) & (rank <= 5)).sum())

    def merge(self, other: "Totals") -> None:
        """Count what another has counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def lines(self, n_bytes: int | None) -> Iterator[tuple[str, str]]:
        """Name and figure of each line of the summary."""
        yield "tokens", f"{self.n:,}"
        if self.n == 0:
            return
        mean = self.loss / self.n
        variance = max(self.square / self.n - mean**2, 0.0)
        error = math.sqrt(variance / (self.n - 1)) if self.n > 1 else math.nan
        perplexity = perplexity_of(mean)
        yield "mean loss", f"{mean:.6f} ± {error:.6f}"
        yield "perplexity", f"{perplexity:.4f} ± {perplexity * error:.4f}"
        yield "bits per token", f"{mean / math.log(2):.6f}"
        if n_bytes is not None:
            yield "bits per byte", f"{self.loss / math.log(2) / n_bytes:.6f}"
        yield "mean entropy", f"{self.entropy / self.n:.6f}"
        yield "top-1 accuracy", f"{self.top1 / self.n:.2%}"
        yield "top-5 accuracy", f"{self.top5 / self.n:.2%}"


def run(args: argparse.Namespace) -> None:
    """Score the files that are named and print what came of it."""
    if args.scheduler:
        from fastce.cli import score_cluster

        score_cluster.run(args)
        return
    source, head, bias, tokens = _arrays(args)
    output, plot = wanted("--output", args.output, WRITERS), wanted("--plot", args.plot, PICTURES)
    if plot:
        require("score", "matplotlib")
    kept: list[tuple[np.ndarray, ...]] = []
    totals, start = Totals(), time.perf_counter()
    with _writer(output, args.top_k) as writer, _progress(source.nbytes, start) as progress:
        for first, scores, of_block in _scores(args, source, head, bias, tokens):
            labels = tokens[first : first + len(scores.rank)]
            totals.merge(of_block)
            if writer:
                writer(first, labels, scores)
            if args.plot:
                used = labels != args.ignore_index
                kept.append((scores.logprob[used], scores.rank[used], scores.top_logprobs[used, 0]))
            progress(source.nbytes * (first + len(labels)) // max(source.n_rows, 1))
    try:
        print_summary(list(totals.lines(args.bytes)), source.nbytes, time.perf_counter() - start)
    finally:  # where nobody reads the summary, too
        if plot and totals.n:
            from fastce.cli.score_plot import draw

            with _replacing(plot) as path:
                draw(*map(np.concatenate, zip(*kept, strict=True)), path, " ".join(map(str, args.files)))


def print_summary(lines: list[tuple[str, str]], n_bytes: int, seconds: float) -> None:
    """Print names and figures, and how fast bytes were read, in two columns."""
    lines = [*lines, ("time", time_text(seconds)), ("read", _speed(n_bytes, seconds))]
    name_width, width = (max(map(len, column)) for column in zip(*lines, strict=True))
    for name, figure in lines:
        print(f" {name:{name_width}}  {figure:>{width}}")


def _speed(n_bytes: int, seconds: float) -> str:
    return f"{three_digits(n_bytes / max(seconds, 1e-9) / 1e9)} GB/s"


@contextmanager
def _progress(n_bytes: int, start: float) -> Iterator[Callable[[int], None]]:
    """A function that is told how many bytes are done, and shows it on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    speed = TextColumn("{task.fields[speed]}")
    columns = (BarColumn(), DownloadColumn(binary_units=True), speed, TimeRemainingColumn())
    terminal = Console(file=sys.stderr)
    with Progress(*columns, console=terminal, transient=True, refresh_per_second=4) as progress:
        task = progress.add_task("", total=n_bytes, speed="")
        yield lambda done: progress.update(
            task, completed=done, speed=_speed(done, time.perf_counter() - start)
        )


def _arrays(args: argparse.Namespace) -> tuple[Array, np.ndarray | None, np.ndarray | None, np.ndarray]:
    """Logits or hidden states, the head's weights and bias, and the tokens, all shapes checked."""
    if bool(args.hidden) != bool(args.head) or (args.bias and not args.head):
        raise UserError("--hidden and --head go together, and --bias with them")
    if len(args.files) != (1 if args.hidden else 2):
        expected = "TOKENS beside --hidden and --head" if args.hidden else "LOGITS and TOKENS"
        raise UserError(f"{len(args.files)} files given; expected {expected}")
    source = _floats(args.hidden or args.files[0])
    head = _floats(args.head).whole() if args.head else None
    bias = _floats(args.bias).whole() if args.bias else None
    tokens = read_tokens(args.files[-1])
    if len(source.shape) < 2:
        raise UserError(
            f"{source.name} has shape {source.shape}; expected at least two axes, classes on the last"
        )
    if head is not None and (head.ndim != 2 or head.shape[1] != source.shape[-1]):
        raise UserError(f"{args.head} has shape {head.shape}; expected (classes, {source.shape[-1]})")
    n_classes = source.shape[-1] if head is None else len(head)
    if bias is not None and bias.shape != (n_classes,):
        raise UserError(f"{args.bias} has shape {bias.shape}; expected ({n_classes},)")
    if tokens.dtype.kind not in "iu":
        raise UserError(f"{args.files[-1]} has dtype {tokens.dtype}; expected integers")
    if tokens.shape != source.shape[:-1] and not (tokens.ndim == 1 and tokens.size == source.n_rows):
        raise UserError(
            f"{args.files[-1]} has shape {tokens.shape}; expected {source.shape[:-1]}, one token for each "
            f"row of {source.name}, whose shape is {source.shape}"
        )
    if not 0 <= args.top_k <= n_classes:
        raise UserError(
            f"--top-k is {args.top_k}; expected a number from 0 to {n_classes}, the number of classes"
        )
    tokens, shape = tokens.reshape(-1), tokens.shape
    for start in range(0, tokens.size, TOKENS_AT_ONCE):
        part = tokens[start : start + TOKENS_AT_ONCE]
        bad = ((part < 0) | (part >= n_classes)) & (part != args.ignore_index)
        if bad.any():
            at = start + int(bad.argmax())
            place = [int(i) for i in np.unravel_index(at, shape)]
            raise UserError(
                f"token {tokens[at]} at {place} of {args.files[-1]}; expected a class in "
                f"[0, {n_classes}) or {args.ignore_index}: use --ignore-index"
            )
    return source, head, bias, tokens


def _floats(name: str) -> Array:
    array = open_array(name)
    try:
        float_array(np.empty(0, array.dtype), name)
    except TypeError as error:
        raise UserError(str(error)) from None
    return array


def _scores(
    args: argparse.Namespace,
    source: Array,
    head: np.ndarray | None,
    bias: np.ndarray | None,
    tokens: np.ndarray,
) -> Iterator[tuple[int, inference.TokenLogprobs, Totals]]:
    """The first row, the scores and the totals of one block after the other."""
    n_workers = (args.threads or fastce.get_num_threads()) if head is None else 1
    options = {
        "top_k": max(args.top_k, 1) if args.plot else args.top_k,
        "temperature": args.temperature,
        "softcap": args.softcap,
        "ignore_index": args.ignore_index,
        "n_threads": 1 if head is None else args.threads,
    }

    def scored(first: int, rows: np.ndarray) -> tuple[int, inference.TokenLogprobs, Totals]:
        labels = tokens[first : first + len(rows)]
        if head is None:
            scores = inference.token_logprobs(rows, labels, **options)
        else:
            memory = max(HEAD_MEMORY, 16 * len(head))
            scores = inference.score(rows, head, labels, linear_bias=bias, memory=memory, **options)
        source.drop(first, len(rows))
        totals = Totals()
        totals.add(scores, labels != args.ignore_index)
        return first, scores, totals

    try:
        # A block for each thread: so page faults are shared as arithmetic is. One more is asked of the disk.
        with ThreadPoolExecutor(n_workers) as workers:
            begun: deque[Future] = deque()
            for first, rows in source.blocks(source.rows_at_once()):
                begun.append(workers.submit(scored, first, rows))
                if len(begun) > n_workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from None


# ---- Files that are written -------------------------------------------------------------------


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside the one that is wanted, which takes its place, and its mode, when all went well."""
    target = Path(os.path.realpath(path))  # a link stays one
    beside = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        beside.touch()
        if target.exists():
            shutil.copymode(target, beside)
        yield beside
        beside.replace(target)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def _columns(
    first: int, labels: np.ndarray, scores: inference.TokenLogprobs, top_k: int
) -> dict[str, np.ndarray]:
    """What is written of a block, by name."""
    columns = {
        "row": np.arange(first, first + len(labels)),
        "token": labels,
        "logprob": scores.logprob,
        "rank": scores.rank,
        "entropy": scores.entropy,
    }
    for i in range(top_k):
        columns[f"top_token_{i + 1}"] = scores.top_tokens[:, i]
        columns[f"top_logprob_{i + 1}"] = scores.top_logprobs[:, i]
    return columns


@contextmanager
def _writer(path: Path | None, top_k: int) -> Iterator:
    """A function that takes first row, labels and scores of one block after the other, or None."""
    if not path:
        yield None
        return
    with _replacing(path) as beside, WRITERS[path.suffix](beside, top_k) as write:
        yield write


@contextmanager
def _npz_writer(path: Path, top_k: int) -> Iterator:
    blocks: list[dict[str, np.ndarray]] = []
    yield lambda first, labels, scores: blocks.append(_columns(first, labels, scores, top_k))
    arrays = {
        name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)


@contextmanager
def _csv_writer(path: Path, top_k: int) -> Iterator:
    with path.open("w") as file:

        def write(first: int, labels: np.ndarray, scores: inference.TokenLogprobs) -> None:
            columns = _columns(first, labels, scores, top_k)
            if first == 0:
                file.write(",".join(columns) + "\n")
            lists = [a.astype(str).tolist() for a in columns.values()]  # no more digits than it takes
            file.writelines(",".join(line) + "\n" for line in zip(*lists, strict=True))

        yield write


@contextmanager
def _parquet_writer(path: Path, top_k: int) -> Iterator:
    require("score", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    writers: list = []

    def write(first: int, labels: np.ndarray, scores: inference.TokenLogprobs) -> None:
        table = pyarrow.table(_columns(first, labels, scores, top_k))
        if not writers:
            writers.append(parquet.ParquetWriter(path, table.schema))
        writers[0].write_table(table)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()


WRITERS = {".npz": _npz_writer, ".parquet": _parquet_writer, ".csv": _csv_writer}
