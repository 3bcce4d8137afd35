"""How long threads of OpenMP that wait, for others or for work, keep their CPU.

GCC's runtime lets them spin for milliseconds before they sleep, if nobody tells it otherwise. Where another
process has work too that is a disaster: a thread that spins has the CPU which the one it waits for needs,
until the system takes it away, and each call takes a time slice or more. With SPINS they spin for about
as long as waking takes, 20 to 50 microseconds or more: at most twice the cost of what would have been best.
Calls of little work that come later wake nobody, see `take_threads`.

The runtime reads its settings when it is loaded, from the environment, which is afterwards as it was. What
the user has set there holds. A runtime that another library has loaded before is left as it is.
"""

import os

SPINS = 1000
AWAKE = 50  # microseconds, in which another call finds them awake
SETTINGS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


def load_runtime() -> None:
    """Load OpenMP's runtime, if nobody has yet."""
    is_ours = not any(name in os.environ for name in SETTINGS)
    if is_ours:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    try:
        from . import threads
    finally:
        if is_ours:
            del os.environ["GOMP_SPINCOUNT"]
    if is_ours:
        threads.sleep_after(AWAKE)
