"""Every function, in every way the kernels have for it, as calls of one signature; and fresh interpreters.

For tests of what a process does to a call: forks, threads, other runtimes, signals. Children import it
without pytest.
"""

import functools
import hashlib
import os
import subprocess
import sys

import numpy as np

import fastce

THREADED = (600, 100)  # rows and classes of a batch that is large enough to be shared between threads


@functools.cache
def calls():
    """Functions of n_threads by name, all of them large enough for threads; each returns what fastce did."""
    rng = np.random.default_rng(5)
    n_rows, n_classes = THREADED
    x = rng.normal(size=THREADED) * 3
    y = rng.integers(n_classes, size=n_rows)
    q = rng.dirichlet(np.ones(n_classes), n_rows)
    few, few_y = (rng.normal(size=(6000, 5)) * 3).astype(np.float32), rng.integers(5, size=6000)
    image, image_y = rng.normal(size=(3, 7, 60, 60)), rng.integers(7, size=(3, 60, 60))
    row, row_y = rng.normal(size=(1, 50_000)).astype(np.float32), [49_000]  # in pieces, which threads share
    half = x.astype(np.float16)
    row_weight, class_weight = rng.random(n_rows), rng.random(n_classes)
    logits, weight = rng.normal(size=(40, 800)) * 5, rng.random(800)
    hits = rng.random(size=(40, 800))

    made = {}

    def add(name, *arguments, label=None, **options):
        function = getattr(fastce, name)
        made[label or name] = lambda n_threads=None: function(*arguments, n_threads=n_threads, **options)

    for name in ("cross_entropy", "cross_entropy_and_grad", "cross_entropy_and_hess"):
        add(name, x, y, sample_weight=row_weight, weight=class_weight)
        add(name, few, few_y, label=f"{name} of few classes", reduction="none")
        add(name, image, image_y, label=f"{name} across", axis=1)
        add(name, row, row_y, label=f"{name} in pieces")
    add("cross_entropy_and_grad", half, y, label="cross_entropy_and_grad of halves")
    add("cross_entropy_and_grad", half, q, label="cross_entropy_and_grad smoothed", label_smoothing=0.1)
    add("cross_entropy_and_hess", x, y, label="cross_entropy_and_hess of soft caps", softcap=5.0, z_loss=0.1)
    for name in ("focal_loss", "focal_loss_and_grad"):
        add(name, x, y, reduction="none")
    for name in ("margin_cross_entropy", "margin_cross_entropy_and_grad"):
        add(name, np.tanh(x), y, scale=16.0)
    add("nll_loss", np.broadcast_to(x[0], (40_000, n_classes)), rng.integers(n_classes, size=40_000))
    add("softmax", x, axis=1)
    add("log_softmax", few, axis=1)
    add("logsumexp", x, axis=1)
    add("logsumexp", x, axis=1, label="logsumexp with factors", b=q)
    for name in (
        "binary_cross_entropy_with_logits",
        "binary_cross_entropy_with_logits_and_grad",
        "binary_cross_entropy_with_logits_and_hess",
    ):
        add(name, logits, hits, weight=weight)
        add(name, logits.astype(np.float32), hits > 0.5, label=f"{name} in float32", reduction="none")
    for name in ("binary_focal_loss", "binary_focal_loss_and_grad"):
        add(name, logits, hits, alpha=0.25)
    add("binary_cross_entropy", hits, hits > 0.5)
    made["information.cross_entropy"] = lambda n_threads=None: fastce.information.cross_entropy(q, q[::-1])
    return made


def digest(result):
    """A hash of the bits of a result or several."""
    code = hashlib.sha256()
    for part in result if isinstance(result, tuple) else (result,):
        code.update(np.ascontiguousarray(part).tobytes())
    return code.hexdigest()


def digests(n_threads=None, names=None):
    """Those of all calls, or of the named ones."""
    return {name: digest(calls()[name](n_threads)) for name in names or calls()}


def python(code, *arguments, timeout=120, check=True, **environment):
    """Run code in a fresh interpreter that can import what is in tests/; one that hangs says where."""
    watched = f"import faulthandler; faulthandler.dump_traceback_later({timeout - 10}, exit=True)\n{code}"
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", watched, *arguments],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done
