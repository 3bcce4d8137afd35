"""What a step of `fastce.dask.LogisticRegression` moves: formulas, for a cluster of any size, and what
the workers of a small one count beside them: ``python tools/dask_traffic.py --workers 4 --chunks 32``.

With W workers, M chunks and the G = 8 K (D + 1) bytes of coefficients or of a gradient, an evaluation of the
objective moves
- the coefficients once to each worker: W G, of which one copy comes with the graph, others from workers;
- sums of the tree: at least (W - 1) G, where neighbouring chunks lie together, and at most (M - 1) G;
- the last sum to the client: G.
"""

import argparse

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, wait

from fastce.dask._objective import FAN_IN, Chunks, Terms

EVALUATIONS = 5


def tasks(n_chunks: int) -> int:
    """Of an evaluation: the coefficients, the chunks, and the sums."""
    total, n = 1 + n_chunks, n_chunks
    while n > 1:
        n = -(-n // FAN_IN)
        total += n
    return total


def show(n_workers: int, n_chunks: int, n_features: int, n_classes: int) -> tuple[float, float]:
    """Print what the formulas say of an evaluation; return the least and the most bytes between workers."""
    size = 8 * n_classes * (n_features + 1)
    moved = np.array([2 * (n_workers - 1), n_workers - 1 + n_chunks - 1])
    least, most = moved * size / 1e6
    print(f"{n_workers} workers, {n_chunks} chunks, {n_features} features, {n_classes} classes")
    print(f"  coefficients {size / 1e6:.1f} MB, tasks {tasks(n_chunks)}")
    print(f"  between workers {moved[0]} to {moved[1]} values, {least:.0f} to {most:.0f} MB")
    print(f"  of them a worker's {least / n_workers:.0f} to {most / n_workers:.0f} MB")
    print(f"  with the client {2 * size / 1e6:.1f} MB")
    return least * 1e6, most * 1e6


def counted(client: Client) -> np.ndarray:
    """Messages and bytes that workers have sent each other."""
    each = client.run(lambda dask_worker: (
        dask_worker.transfer_outgoing_count_total, dask_worker.transfer_outgoing_bytes_total
    ))  # fmt: skip
    return np.sum(list(each.values()), axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--features", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=50)
    options = parser.parse_args()
    n_workers, n_chunks, n_features, n_classes = vars(options).values()
    least, most = show(n_workers, n_chunks, n_features, n_classes)

    rows = 20 * n_chunks
    with (
        LocalCluster(n_workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        X = da.random.default_rng(0).normal(size=(rows, n_features), chunks=(20, -1))
        y = da.arange(rows, chunks=20) % n_classes
        X, y = client.persist([X, y])
        wait([X, y])
        chunks, terms = Chunks(X, y, None), Terms(np.arange(n_classes), np.ones(n_classes), float(rows), True)
        before = counted(client)
        for seed in range(EVALUATIONS):
            chunks.loss_and_grad(np.random.default_rng(seed).normal(size=n_classes * (n_features + 1)), terms)
        messages, n_bytes = (counted(client) - before) / EVALUATIONS
    print(f"counted: {n_bytes / 1e6:.1f} MB, in {messages:.0f} messages")
    assert 0.98 * least <= n_bytes <= 1.02 * most, "the counters contradict the formulas"

    print("\non paper:")
    for n_chunks in (512, 25_600):
        show(64, n_chunks, 10_000, 100)


if __name__ == "__main__":
    main()
