"""Scores, best classes and samples in fastce and PyTorch."""

import fastce
from fastce.cli.inference import TASKS, call
from fastce.cli.measure import random_batch
from fastce.cli.rivals import RIVALS

SHAPES = [(1, 128256), (64, 128256), (2048, 32000)]


class Inference:
    """Of float32 logits; results are new arrays."""

    params = (list(TASKS), SHAPES, ["fastce", "torch"])
    param_names = ("task", "shape", "rival")

    def setup(self, task: str, shape: tuple[int, int], rival: str) -> None:
        if rival != "fastce" and not RIVALS[rival].installed:
            raise NotImplementedError(f"{rival} is not installed")
        batch = random_batch(shape, "float32", fastce.get_num_threads())
        self.call = call(task, rival, batch.logits, batch.labels)

    def time_call(self, *_: object) -> None:
        self.call()

    def peakmem_call(self, *_: object) -> None:
        self.call()
