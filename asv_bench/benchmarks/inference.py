"""Scores, best classes and samples in fastce and PyTorch."""

import numpy as np

import fastce
from fastce import inference
from fastce.cli.measure import random_batch
from fastce.cli.rivals import RIVALS

SHAPES = [(1, 128256), (64, 128256), (2048, 32000)]
TASKS = ["scores", "top 50", "nucleus"]


class Inference:
    """Of float32 logits; results are new arrays."""

    params = (TASKS, SHAPES, ["fastce", "torch"])
    param_names = ("task", "shape", "rival")

    def setup(self, task: str, shape: tuple[int, int], rival: str) -> None:
        batch = random_batch(shape, "float32", fastce.get_num_threads())
        x, y = batch.logits, batch.labels
        if rival == "fastce":
            self.call = {
                "scores": lambda: inference.token_logprobs(x, y, top_k=5),
                "top 50": lambda: inference.top_k(x, 50),
                "nucleus": lambda: inference.sample(x, temperature=0.8, top_p=0.95, rng=0),
            }[task]
            return
        if not RIVALS[rival].installed:
            raise NotImplementedError(f"{rival} is not installed")
        self.call = torch_calls(x, y)[task]

    def time_call(self, *_: object) -> None:
        self.call()

    def peakmem_call(self, *_: object) -> None:
        self.call()


def torch_calls(x: np.ndarray, y: np.ndarray) -> dict:
    """The same with PyTorch; the nucleus by a sort, as transformers has it."""
    import torch

    logits, labels = torch.from_numpy(x), torch.from_numpy(y)[:, None]

    def scores() -> object:
        logs = torch.log_softmax(logits, -1)
        chosen = logs.gather(-1, labels)
        return chosen, (logs > chosen).sum(-1), -(logs.exp() * logs).sum(-1), logs.topk(5, -1)

    def nucleus() -> object:
        ascending, order = torch.sort(logits / 0.8)
        dropped = ascending.softmax(-1).cumsum(-1) <= 0.05
        dropped[:, -1] = False
        kept = (logits / 0.8).masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
        return torch.multinomial(kept.softmax(-1), 1)

    return {"scores": scores, "top 50": lambda: logits.topk(50, -1), "nucleus": nucleus}
