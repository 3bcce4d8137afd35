"""Import fastce on x86-64 processors that this machine is not, played by qemu-user (a package of Debian).

    python tools/check_processors.py

Each must choose its level of the table, compute to the bit what that level computes here, and refuse the
levels above. QEMU 7.2 plays no AVX-512. NumPy's OpenBLAS guesses the processor wrong there, so it is told.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Processor of QEMU: the level it can run at most. NumPy's own wheels want SSE4.2.
PROCESSORS = {
    "Nehalem": "baseline",
    "SandyBridge": "baseline",
    "Opteron_G5": "baseline",
    "Haswell,-fma": "baseline",
    "Haswell,-f16c": "baseline",
    "Haswell,-bmi2": "baseline",
    "Haswell": "v3",
    "EPYC-Milan": "v3",
    "Skylake-Server": "v3",
}
LEVELS = ("baseline", "v3", "v4")

PROGRAM = """
import hashlib
import numpy as np
import fastce
rng, digest = np.random.default_rng(0), hashlib.sha256()
for dtype in (np.float32, np.float64, np.float16):
    for shape in ((300, 10), (64, 1003), (2, 20000)):
        x, y = (rng.normal(size=shape) * 5).astype(dtype), rng.integers(0, shape[1], shape[0])
        for options in ({}, {"label_smoothing": 0.1, "z_loss": 1e-3}, {"softcap": 20.0, "temperature": 0.7}):
            for a in fastce.cross_entropy_and_hess(x, y, reduction="none", **options):
                digest.update(a)
        digest.update(fastce.softmax(x, axis=1))
        digest.update(fastce.logsumexp(x, axis=1))
        digest.update(fastce.binary_cross_entropy_with_logits(x, x > 0, reduction="none"))
print(fastce.show_config(mode="dict")["level"], digest.hexdigest()[:32])
"""


def run(level: str | None, processor: str | None = None) -> tuple[str, str]:
    """The last line the program prints, and the last that it complains."""
    # The interpreter itself: qemu-user starts no scripts, and finds no virtual environment.
    python = [str(Path(sys.executable).resolve()), "-c", PROGRAM]
    settings = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OPENBLAS_NUM_THREADS": "1"}
    if processor:
        python = ["qemu-x86_64", "-cpu", processor, *python]
        settings["OPENBLAS_CORETYPE"] = "Prescott"
    if level:
        settings["FASTCE_LEVEL"] = level
    environment = {k: v for k, v in os.environ.items() if k != "FASTCE_LEVEL"} | settings
    done = subprocess.run(python, env=environment, capture_output=True, text=True, check=False, timeout=600)
    return done.stdout.strip(), (done.stderr.strip().splitlines() or [""])[-1]


def main() -> int:
    if not shutil.which("qemu-x86_64"):
        print("qemu-x86_64 is missing (Debian: apt-get install qemu-user)", file=sys.stderr)
        return 1
    here = {level: run(level)[0] for level in ("baseline", "v3")}
    wrong = 0
    for processor, level in PROCESSORS.items():
        got, complaint = run(None, processor)
        passed = bool(got) and got == here[level]
        wrong += not passed
        beside = "as here" if passed else f"but here {here[level]!r}"
        print(f"{processor}: {got or complaint}, {beside}", flush=True)
    for processor in ("Nehalem", "Haswell"):
        runnable = LEVELS[: LEVELS.index(PROCESSORS[processor]) + 1]
        for level in LEVELS[len(runnable) :]:
            got, complaint = run(level, processor)
            refused = complaint.startswith("ImportError") and f"are {', '.join(runnable)} " in complaint
            passed = not got and refused
            wrong += not passed
            print(f"{processor}, {level} asked for: {got or complaint}", flush=True)
    print("passed" if not wrong else f"{wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
