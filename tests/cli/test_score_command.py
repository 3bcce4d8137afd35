"""``python -m fastce score``: what it prints and writes, from every kind of file, and its one-line errors."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastce
from fastce.cli import main
from fastce.cli.common import UserError, check_only
from fastce.inference import score, token_logprobs

pytestmark = pytest.mark.once


@pytest.fixture
def problem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 50)).astype(np.float32) * 3, rng.integers(50, size=300)
    y[17] = -100
    np.save("tokens.npy", y)
    np.save("logits.npy", x)
    return x, y


def save_safetensors(path, **arrays):
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key, a in arrays.items():
        span = [offset, offset + a.nbytes]
        header[key] = {"dtype": names[a.dtype.name], "shape": a.shape, "data_offsets": span}
        offset += a.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values()))


def summary(capsys, *arguments):
    assert main(["score", *map(str, arguments)]) == 0
    lines = (line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip())
    return {name.strip(): figure.strip() for name, figure in lines}


def error(capsys, *arguments):
    assert main(["score", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_summary(problem, capsys):
    x, y = problem
    used = y >= 0
    scores = token_logprobs(x[used], y[used])
    loss = -scores.logprob.astype(np.float64)
    found = summary(capsys, "logits.npy", "tokens.npy", "--bytes", 1000)
    mean, wrong = loss.mean(), loss.std() / np.sqrt(loss.size - 1)
    assert found["tokens"] == "299"
    assert found["mean loss"] == f"{mean:.6f} ± {wrong:.6f}"
    assert found["perplexity"] == f"{np.exp(mean):.4f} ± {np.exp(mean) * wrong:.4f}"
    assert found["bits per token"] == f"{mean / np.log(2):.6f}"
    assert found["bits per byte"] == f"{loss.sum() / np.log(2) / 1000:.6f}"
    assert found["top-1 accuracy"] == f"{(scores.rank == 1).mean():.2%}"
    assert found["top-5 accuracy"] == f"{(scores.rank <= 5).mean():.2%}"
    assert found["read"].endswith("GB/s")
    assert "time" in found


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("kind", ["npy", "npz", "compressed", "safetensors", "fortran"])
def test_files(problem, capsys, kind, dtype):
    x, y = problem[0].astype(dtype), problem[1]
    name = {"npy": "x.npy", "fortran": "x.npy", "safetensors": "x.safetensors:model.x"}.get(kind, "x.npz:x")
    if kind in ("npy", "fortran"):
        np.save("x.npy", np.asfortranarray(x) if kind == "fortran" else x)
    elif kind == "npz":
        np.savez("x.npz", other=np.zeros(3), x=x)
    elif kind == "compressed":
        np.savez_compressed("x.npz", x=x)
    else:
        save_safetensors("x.safetensors", other=np.zeros(3, np.float32), **{"model.x": x})
    used = y >= 0
    mean = -token_logprobs(x[used], y[used]).logprob.mean(dtype=np.float64)
    assert summary(capsys, name, "tokens.npy")["mean loss"].startswith(f"{mean:.6f} ")


def test_tokens_in_text_with_a_mark_of_its_encoding(problem, capsys):
    Path("tokens.txt").write_text(" ".join(map(str, problem[1])), "utf-8-sig")
    assert summary(capsys, "logits.npy", "tokens.txt")["tokens"] == "299"


def test_tokens_in_text_and_options(problem, capsys):
    x, y = problem
    y = np.where(y < 0, 3, y)
    with open("tokens.txt", "w") as file:
        file.write("\n".join(map(str, y)))
    options = {"temperature": 0.7, "softcap": 5.0, "ignore_index": 3}
    mean = -token_logprobs(x[y != 3], y[y != 3], **options).logprob.mean(dtype=np.float64)
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert summary(capsys, "logits.npy", "tokens.txt", *given)["mean loss"].startswith(f"{mean:.6f} ")


def test_hidden_states(problem, capsys):
    y = problem[1]
    rng = np.random.default_rng(1)
    hidden, head, bias = (rng.normal(size=n).astype(np.float32) for n in ((300, 8), (50, 8), 50))
    save_safetensors("head.safetensors", weight=head, bias=bias)
    np.save("hidden.npy", hidden)
    used = y >= 0
    scores = score(hidden[used], head, y[used], linear_bias=bias)
    files = ["--hidden", "hidden.npy", "--head", "head.safetensors:weight", "--bias", "head.safetensors:bias"]
    found = summary(capsys, *files, "tokens.npy")
    assert found["mean loss"].startswith(f"{-scores.logprob.mean(dtype=np.float64):.6f} ")


def test_blocks(problem, capsys, monkeypatch, tmp_path):
    """What comes of many blocks is what comes of one; a batch may have several axes."""
    whole = summary(capsys, "logits.npy", "tokens.npy")
    monkeypatch.setattr("fastce.cli.files.BLOCK_BYTES", 7 * 50 * 4)
    blocks = summary(capsys, "logits.npy", "tokens.npy", "--output", "out.csv")
    np.save("x.npy", problem[0].reshape(30, 10, 50))
    np.save("y.npy", problem[1].reshape(30, 10))
    shaped = summary(capsys, "x.npy", "y.npy")
    for name in whole.keys() - {"time", "read"}:
        assert whole[name] == blocks[name] == shaped[name]
    assert (tmp_path / "out.csv").read_text().count("\n") == 301
    summary(capsys, "logits.npy", "tokens.npy", "--output", "blocks.npz")
    with np.load("blocks.npz") as columns:  # in the order of the file, whichever thread was done first
        np.testing.assert_array_equal(columns["row"], np.arange(300))
        np.testing.assert_array_equal(columns["logprob"], token_logprobs(*problem).logprob)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "csv"])
def test_output(problem, capsys, suffix):
    x, y = problem
    scores = token_logprobs(x, y, top_k=2)
    summary(capsys, "logits.npy", "tokens.npy", "--output", f"out.{suffix}", "--top-k", 2)
    if suffix == "npz":
        found = dict(np.load("out.npz"))
    elif suffix == "parquet":
        from pyarrow import parquet

        table = parquet.read_table("out.parquet")
        found = {name: table[name].to_numpy() for name in table.column_names}
    else:
        with open("out.csv") as file:
            rows = list(csv.DictReader(file))
        found = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    expected = {
        "row": np.arange(300),
        "token": y,
        "logprob": scores.logprob,
        "rank": scores.rank,
        "entropy": scores.entropy,
        "top_token_1": scores.top_tokens[:, 0],
        "top_logprob_1": scores.top_logprobs[:, 0],
        "top_token_2": scores.top_tokens[:, 1],
        "top_logprob_2": scores.top_logprobs[:, 1],
    }
    assert list(found) == list(expected)
    for name, a in expected.items():
        np.testing.assert_array_equal(found[name].astype(a.dtype), a)


@pytest.mark.skipif(os.name == "nt", reason="links and modes of POSIX")
@pytest.mark.parametrize("suffix", ["npz", "parquet", "csv", "png"])
def test_output_keeps_links_and_modes(problem, capsys, tmp_path, suffix):
    (tmp_path / "there").mkdir()
    private, link = tmp_path / "there" / f"private.{suffix}", tmp_path / f"link.{suffix}"
    private.touch()
    private.chmod(0o600)
    link.symlink_to(private)
    summary(capsys, "logits.npy", "tokens.npy", "--plot" if suffix == "png" else "--output", link)
    assert link.is_symlink()
    assert private.stat().st_size > 1000
    assert private.stat().st_mode & 0o777 == 0o600
    assert list(private.parent.iterdir()) == [private]


@pytest.mark.parametrize("suffix", ["npz", "parquet", "csv"])
def test_output_of_no_rows(problem, capsys, suffix):
    np.save("logits.npy", problem[0][:0])
    np.savez_compressed("tokens.npz", problem[1][:0])
    found = summary(capsys, "logits.npy", "tokens.npz", "--output", f"out.{suffix}", "--top-k", 1)
    assert found["tokens"] == "0"
    names = "row", "token", "logprob", "rank", "entropy", "top_token_1", "top_logprob_1"
    if suffix == "csv":
        assert Path("out.csv").read_text() == ",".join(names) + "\n"
    elif suffix == "npz":
        assert {name: a.shape for name, a in np.load("out.npz").items()} == dict.fromkeys(names, (0,))
    else:
        from pyarrow import parquet

        table = parquet.read_table("out.parquet")
        assert (table.num_rows, *table.column_names) == (0, *names)


def test_plot(problem, capsys):
    summary(capsys, "logits.npy", "tokens.npy", "--plot", "plot.png")
    with open("plot.png", "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_plot_of_infinite_losses(problem, capsys, tmp_path):
    x, y = problem
    x[5, y[5]] = -np.inf
    np.save("logits.npy", x)
    summary(capsys, "logits.npy", "tokens.npy", "--plot", "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize("number", ["x", "0", "-1", "1.5", "9" * 5000])
def test_numbers_of_options(capsys, number):
    with pytest.raises(SystemExit):
        main(["score", "logits.npy", "tokens.npy", "--bytes", number])
    assert f"argument --bytes: '{number}' is no whole number of at least 1" in capsys.readouterr().err


def test_only_of_no_name():
    with pytest.raises(UserError, match="--only is xyz; expected a part of one of: data; more data"):
        check_only("xyz", ["data", "more data"])
    check_only("more", ["data", "more data"])


def test_what_breaks_off_leaves_nothing(problem, capsys, monkeypatch, tmp_path):
    def fail(*arguments, **options):
        raise KeyboardInterrupt

    (tmp_path / "out.csv").write_text("before")
    monkeypatch.setattr("fastce.cli.score.inference.token_logprobs", fail)
    assert main(["score", "logits.npy", "tokens.npy", "--output", "out.csv"]) == 130
    assert (tmp_path / "out.csv").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logits.npy", "out.csv", "tokens.npy"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to handle")
def test_a_process_that_is_ended_leaves_nothing(problem, tmp_path):
    code = (
        "import os, runpy, signal, sys; from fastce import inference;"
        "inference.token_logprobs = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM);"
        "sys.argv = ['fastce', 'score', 'logits.npy', 'tokens.npy', '--output', 'out.csv'];"
        "runpy.run_module('fastce', run_name='__main__')"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(fastce.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=here, check=False).returncode == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logits.npy", "tokens.npy"]


def run_fastce(stdout, *arguments, **variables):
    here = {**os.environ, "PYTHONPATH": str(Path(fastce.__file__).parents[1]), **variables}
    command = [sys.executable, "-m", "fastce", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=here, check=False, text=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has another error for a closed pipe")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_nobody_reads(problem, tmp_path, unbuffered):
    """Files are written all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ("score", "logits.npy", "tokens.npy", "--output", "out.csv", "--plot", "plot.png")
    for given in (arguments, ("info",)):
        ended = run_fastce(writer, *given, PYTHONUNBUFFERED=unbuffered)
        assert (ended.returncode, ended.stderr) == (1, "")
    os.close(writer)
    assert (tmp_path / "out.csv").read_text().count("\n") == 301
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device here is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(problem, unbuffered):
    for given in (("score", "logits.npy", "tokens.npy"), ("info",)):
        with open("/dev/full", "w") as full:
            ended = run_fastce(full, *given, PYTHONUNBUFFERED=unbuffered)
        assert ended.returncode == 1
        assert ended.stderr == f"fastce: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}\n"


def test_errors(problem, capsys):
    x, y = problem
    np.savez("x.npz", a=x, b=x)
    np.save("wide.npy", np.zeros((4, 50)))
    np.save("strings.npy", np.array(["a"]))
    np.save("complex.npy", x.astype(complex))
    np.save("bad.npy", np.where(np.arange(300) == 40, 50, y))
    with open("short.npy", "wb") as file, open("logits.npy", "rb") as whole:
        file.write(whole.read()[:1000])
    with open("no.safetensors", "wb") as file:
        file.write(b"nothing of that kind")
    with open("words.txt", "w") as file:
        file.write("1 2 three")
    np.savez_compressed("damaged.npz", a=x)
    damaged = bytearray(Path("damaged.npz").read_bytes())
    damaged[9000:9100] = bytes(100)
    Path("damaged.npz").write_bytes(damaged)
    for name, header in {
        "list": b"[1]",
        "text": b'{"a": "F32"}',
        "shape": b'{"a": {"dtype": "F32", "shape": "9", "data_offsets": [0, 9]}}',
        "part": b'{"a": {"dtype": "F32", "shape": [9, 5], "data_offsets": [0.5, 9]}}',
        "negative": b'{"a": {"dtype": "F32", "shape": [-1, 5], "data_offsets": [0, 0]}}',
        "deep": b"[" * 10**5,
    }.items():
        Path(f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    cases = [
        (("no.npy", "tokens.npy"), "no.npy does not exist"),
        (("logits.npy", "no.txt"), "no.txt does not exist"),
        (("logits.csv", "tokens.npy"), "unknown ending; expected FILE.npy"),
        (("x.npz:c", "tokens.npy"), "has no key 'c'; it has a, b"),
        (("x.npz", "tokens.npy"), "name one with FILE:key; it has a, b"),
        (("short.npy", "tokens.npy"), "ends early"),
        (("strings.npy", "tokens.npy"), "strings.npy has dtype <U1; expected float32"),
        (("tokens.npy", "tokens.npy"), "expected at least two axes"),
        (("complex.npy", "tokens.npy"), "complex.npy has dtype complex128; expected float32"),
        (("--hidden", "logits.npy", "--head", "complex.npy", "tokens.npy"), "complex.npy has dtype"),
        (("no.safetensors:a", "tokens.npy"), "no safetensors file"),
        *(
            ((f"{name}.safetensors", "tokens.npy"), "its header does not tell of arrays")
            for name in ("list", "text", "shape", "part", "negative", "deep")
        ),
        (("damaged.npz", "tokens.npy"), "damaged.npz cannot be read"),
        (("logits.npy", "damaged.npz"), "damaged.npz cannot be read"),
        (("logits.npy", "words.txt"), "no list of integers"),
        (("logits.npy", "wide.npy"), "expected integers"),
        (("wide.npy", "tokens.npy"), "one token for each row"),
        (("logits.npy", "bad.npy"), "token 50 at [40] of bad.npy; expected a class in [0, 50)"),
        (("logits.npy",), "1 files given; expected LOGITS and TOKENS"),
        (("--hidden", "logits.npy", "tokens.npy"), "--head go together"),
        (("--hidden", "logits.npy", "--head", "wide.npy", "logits.npy", "tokens.npy"), "2 files given"),
        (
            ("--hidden", "logits.npy", "--head", "logits.npy", "--bias", "wide.npy", "tokens.npy"),
            "expected (300,)",
        ),
        (("--hidden", "logits.npy", "--head", "x.npz:a", "wide.npy"), "expected integers"),
        (("logits.npy", "tokens.npy", "--output", "out.txt"), "expected a file ending in .npz"),
        (("logits.npy", "tokens.npy", "--output", "no/out.csv"), "in a folder that can be written to"),
        (("logits.npy", "tokens.npy", "--output", "words.txt/out.csv"), "in a folder that can be written to"),
        (("logits.npy", "tokens.npy", "--plot", "no/out.png"), "in a folder that can be written to"),
        (("logits.npy", "tokens.npy", "--plot", "plot.foo"), "expected a file ending in .png"),
        (("logits.npy", "tokens.npy", "--top-k", "51"), "--top-k is 51"),
        (("logits.npy", "tokens.npy", "--temperature", "0"), "temperature is 0"),
    ]
    for arguments, message in cases:
        assert message in error(capsys, *arguments)
