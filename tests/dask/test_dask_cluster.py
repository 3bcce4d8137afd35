"""The classifier on a cluster of processes: where chunks lie, a worker that dies, more data than memory."""

import os
import signal

import numpy as np
import pytest
from scipy import sparse

distributed = pytest.importorskip(
    "distributed", reason="distributed is not installed: a cluster of processes is NOT tested"
)
import dask  # noqa: E402
import dask.array as da  # noqa: E402

pytest.importorskip("sklearn", "1.8")  # the first that fastce.sklearn takes

from fastce.cli import main  # noqa: E402
from fastce.dask import LogisticRegression, _objective  # noqa: E402

pytestmark = [pytest.mark.once, pytest.mark.slow]

N_ROWS, N_FEATURES, ROWS = 1200, 20, 150


@pytest.fixture(scope="module", autouse=True)
def environment():
    """A cluster gives its workers' numbers of threads to this process as well."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def client():
    with (
        dask.config.set({"distributed.scheduler.worker-ttl": None}),
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def arrays(is_sparse=False):
    rng = np.random.default_rng(0)
    X = 0.5 * rng.normal(size=(N_ROWS, N_FEATURES)) * (rng.random((N_ROWS, N_FEATURES)) < 0.3)
    y = np.argmax(X[:, :4] + rng.normal(size=(N_ROWS, 4)), axis=1)
    X, y = da.from_array(X, chunks=(ROWS, -1)), da.from_array(y, chunks=ROWS)
    if is_sparse:
        X = X.map_blocks(sparse.csr_matrix, meta=sparse.csr_matrix((0, 0)))
    return X, y


def bits(model):
    return model.coef_.tobytes() + model.intercept_.tobytes()


@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_same_bits_wherever_chunks_lie(client, is_sparse):
    with dask.config.set(scheduler="synchronous"):
        expected = bits(LogisticRegression(tol=1e-2).fit(*arrays(is_sparse)))
    assert bits(LogisticRegression(tol=1e-2).fit(*arrays(is_sparse))) == expected
    blocks = [dask.compute(*a.to_delayed().ravel(), scheduler="synchronous") for a in arrays(is_sparse)]
    one, other = client.scheduler_info()["workers"]
    for places in ([one] * 8, [other, one] * 4, [one] * 5 + [other] * 3):
        X, y = (
            [client.scatter(a, workers=[p], hash=False) for a, p in zip(of, places, strict=True)]
            for of in blocks
        )
        assert [client.who_has(of)[of.key] for of in X] == [(place,) for place in places]
        X = [da.from_delayed(of, (ROWS, N_FEATURES), float) for of in X]
        y = [da.from_delayed(of, (ROWS,), int) for of in y]
        assert bits(LogisticRegression(tol=1e-2).fit(da.concatenate(X), da.concatenate(y))) == expected


def test_a_worker_that_dies_in_mid_fit_costs_time_only(client, monkeypatch):
    X, y = client.persist(arrays())
    expected = bits(LogisticRegression(tol=1e-2).fit(X, y))
    evaluate = _objective.Chunks.loss_and_grad
    evaluations = []

    def evaluated(self, *args):
        evaluations.append(0)
        if len(evaluations) == 3:
            pids = client.run(os.getpid)
            os.kill(next(iter(pids.values())), signal.SIGKILL)
        return evaluate(self, *args)

    monkeypatch.setattr(_objective.Chunks, "loss_and_grad", evaluated)
    assert bits(LogisticRegression(tol=1e-2).fit(X, y)) == expected
    assert len(evaluations) > 3


def test_score_command(client, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng, files = np.random.default_rng(0), []
    x, y = rng.normal(size=(50, 9)), rng.integers(9, size=50)
    for i, rows in enumerate((slice(0, 20), slice(20, 21), slice(21, 50))):
        files += [str(tmp_path / f"logits_{i}.npy"), str(tmp_path / f"tokens_{i}.npy")]
        np.save(files[-2], x[rows])
        np.save(files[-1], y[rows])
    np.save("logits.npy", x)
    np.save("tokens.npy", y)

    def figures(*arguments):
        assert main(["score", *arguments]) == 0
        lines = (
            line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line.strip()
        )
        shown = {name.strip(): figure.strip() for name, figure in lines}
        return {name: figure for name, figure in shown.items() if name not in ("tasks", "time", "read")}

    address = client.scheduler.address
    assert figures("--scheduler", address, *files) == figures("logits.npy", "tokens.npy")
    for arguments, message in (
        (files[:3], "3 files given; expected LOGITS and TOKENS of each task in turn"),
        ([*files, "--output", "scores.npz"], "--output is given with --scheduler"),
    ):
        assert main(["score", "--scheduler", address, *arguments]) == 2
        assert message in capsys.readouterr().err


BASE = np.random.default_rng(1).normal(size=(1 << 16, 64)).astype(np.float32)


def made(block):
    """A chunk of 16 MiB; or its labels."""
    return BASE.copy() if block.ndim == 2 else (BASE[:, 1] > 0.3 * BASE[:, 0]).astype(np.int8)


def test_data_of_ten_times_the_memory_stream_through():
    limit, n_chunks, rows = 400 << 20, 250, len(BASE)
    X = da.zeros((n_chunks * rows, BASE.shape[1]), chunks=(rows, -1), dtype=np.float32)
    y = da.zeros(len(X), chunks=rows, dtype=np.int8)
    X, y = (a.map_blocks(made, dtype=a.dtype, meta=np.empty((0,) * a.ndim, a.dtype)) for a in (X, y))
    assert X.nbytes >= 10 * limit
    with (
        distributed.LocalCluster(
            1, threads_per_worker=1, memory_limit=limit, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pid = client.run(os.getpid)
        model = LogisticRegression(tol=0.1, max_iter=1).fit(X, y)
        assert client.run(os.getpid) == pid  # it was not ended for holding too much
    assert model.score(BASE, made(np.empty(0))) > 0.9
