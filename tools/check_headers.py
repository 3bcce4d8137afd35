"""Compile the C headers of fastce/_kernels without Python and run their tests, tests/native/test_*.c.

    python tools/check_headers.py [--install] [variant ...]

Variants, all by default: the levels of setup.py, with its flags (where the processor has no AVX-512, v4 with
its instructions played in C, tests/native/avx512.h); `portable`, the code for processors that simd.h has no
intrinsics for; `arm64`, cross-compiled and run by qemu-user; `windows` and `windows-v3`, cross-compiled and
run by Wine. CC names the compiler of all but those. `--install` has apt-get fetch what they need.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
MINGW, WINE = "x86_64-w64-mingw32-gcc", "wine"
PACKAGES = {
    CROSS: ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
    EMULATOR: ["qemu-user"],
    MINGW: ["gcc-mingw-w64-x86-64"],
    WINE: ["wine", "wine64"],
}


def flags_of_setup() -> tuple[list[str], dict[str, list[str]], list[str]]:
    """FLAGS, LEVELS and MINGW_FLAGS of setup.py, without running what builds there; as on any platform."""
    wanted = {"V3", "LEVELS", "FLAGS", "MINGW_FLAGS"}
    found = {}
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
            if isinstance(target, ast.Name) and target.id in wanted:
                found.setdefault(node.lineno, node)
    names: dict = {}
    for _, node in sorted(found.items()):
        exec(compile(ast.Module([node], []), "setup.py", "exec"), names)
    return names["FLAGS"], names["LEVELS"], names["MINGW_FLAGS"]


def install_missing(programs: set[str]) -> None:
    absent = [program for program in PACKAGES if program in programs and not shutil.which(program)]
    missing = [package for program in absent for package in PACKAGES[program]]
    if missing:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)


def runs_here(flags: list[str]) -> bool:
    """Whether this processor has what -m... flags ask for."""
    wanted = {flag.removeprefix("-m") for flag in flags if flag.startswith("-m")}
    if not wanted:
        return True
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return wanted <= {word for line in lines if line.startswith("flags") for word in line.split()}


def emulated(flags: list[str]) -> list[str]:
    """The same without AVX-512, whose instructions tests/native/avx512.h then plays."""
    kept = [flag for flag in flags if not flag.startswith("-mavx512")]
    if kept == flags:
        return flags
    # GCC 12 stops with an error of its own, or moves lanes, where it vectorizes what plays a vector.
    header = ROOT / "tests/native/avx512.h"
    return [*kept, "-DEMULATED_AVX512", "-Wno-psabi", "-fno-tree-vectorize", "-include", str(header)]


def check(
    name: str, compiler: list[str], flags: list[str], prefix: list[str], source: Path, folder: str
) -> bool:
    """Compile and run one test; whether it passed."""
    program = f"{folder}/{source.stem}-{name}{'.exe' if prefix == [WINE] else ''}"
    environment = {**os.environ, "WINEPREFIX": f"{folder}/wine", "WINEDEBUG": "-all"}
    includes = [f"-I{ROOT}/fastce/_kernels", f"-I{source.parent}"]
    strict = ["-Werror=incompatible-pointer-types", "-Werror=int-conversion"]  # a call of other arguments
    command = [*compiler, "-std=gnu11", *strict, *flags, *includes, str(source), "-o", program, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        done = subprocess.run(
            [*prefix, program], capture_output=True, text=True, check=False, timeout=900, env=environment
        )
    lines = [line for line in done.stdout.splitlines() if "share of the bound" not in line]
    problem = "" if done.returncode == 0 else f"exit status {done.returncode}\n{done.stderr}"
    print(f"{name}: {' '.join(compiler)} {' '.join(flags)}\n" + "\n".join(lines) + problem, flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--install", action="store_true", help="apt-get what arm64 and windows need")
    parser.add_argument("variants", nargs="*")
    arguments = parser.parse_args()
    flags, levels, mingw_flags = flags_of_setup()
    host = os.environ.get("CC", "cc").split()
    x86 = os.uname().machine == "x86_64"
    sources = sorted(ROOT.glob("tests/native/test_*.c"))
    variants = {"arm64": ([CROSS, "-static"], flags, [EMULATOR])}  # the slowest first
    variants |= {name: (host, [*flags, *more], []) for name, more in levels.items() if x86 or not more}
    if x86:
        variants["portable"] = (host, [*flags, "-U__SSE2__"], [])
        windows = [MINGW, "-static"]
        variants["windows"] = (windows, [*flags, *mingw_flags], [WINE])
        variants["windows-v3"] = (windows, [*flags, *mingw_flags, *levels["v3"]], [WINE])
    chosen = arguments.variants or list(variants)
    if unknown := set(chosen) - set(variants):
        parser.error(f"{', '.join(sorted(unknown))}: no such variant here; there are {', '.join(variants)}")
    if arguments.install:
        chosen_programs = [program for name in chosen for program in (*variants[name][0], *variants[name][2])]
        install_missing(set(chosen_programs))

    jobs = []
    for name in chosen:
        compiler, its_flags, prefix = variants[name]
        if not all(map(shutil.which, [compiler[0], *prefix])):
            print(f"{name}: {compiler[0]} or {prefix} is missing; --install fetches them", file=sys.stderr)
            return 1
        emulates = prefix == [EMULATOR]
        if not emulates and not runs_here(its_flags):
            its_flags = emulated(its_flags)
        if not emulates and not runs_here(its_flags):
            print(f"{name}: NOT RUN, this processor cannot", flush=True)
            continue
        jobs += [(name, compiler, its_flags, prefix, source) for source in sources]
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = list(pool.map(lambda job: check(*job, folder), jobs))
    print(f"{sum(passed)} of {len(passed)} passed")
    return int(not passed or not all(passed))


if __name__ == "__main__":
    sys.exit(main())
