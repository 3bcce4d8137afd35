"""Build the kernels: of each source one extension module per instruction-set level."""

import os
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from Cython.Build import cythonize
from extension_helpers import add_openmp_flags_if_available
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = "fastce/_kernels"
SHARED = ["entry/arrays", "entry/calls", "entry/dlpack", "entry/options", "entry/tensors", "machine/cpu",
          "machine/threads"]
# Of entry/, built for each level.
SOURCES = ["kernels", "elementwise", "scoring", "calibration", "boosting", "information"]
HEADERS = [str(path) for pattern in ("*.h", "*.pxi") for path in Path(HERE).rglob(pattern)]

# Flags per level; fastce/_kernels/__init__.py names the CPU features that go with each.
# Never -ffast-math, -Ofast or -fassociative-math: they change results, and the first two the host's FP state.
V3 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
LEVELS = {"baseline": []}
if sys.platform in ("linux", "win32") and platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {"v3": V3, "v4": [*V3, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]}
# MinGW-w64's GCC takes the stack for aligned to a vector, which on Windows it is not (GCC bug 54412).
MINGW_FLAGS = ["-Wa,-muse-unaligned-vector-move"]
# FASTCE_BUILD_LEVELS=v3 builds one alone: sooner, while a kernel is written.
# The lowest first: Cython hands the flags of a source on to the next extension of it.
BUILT = sorted(os.environ.get("FASTCE_BUILD_LEVELS", ",".join(LEVELS)).split(","), key=list(LEVELS).index)

# -ffp-contract=off: a product and a sum are fused where the source says so and nowhere else.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# Python's own flags ask for debugging information, most of what would be in a wheel; CFLAGS=-g keeps it.
NO_DEBUGGING = [] if "-g" in os.environ.get("CFLAGS", "").split() else ["-g0"]

# What a call needs is on the stack, in memory of its thread or in the caller's arrays; all that calls share
# are a few atomic ints in threads.h. It belongs to the process, as OpenMP's threads do, and not to one
# of its interpreters.
DIRECTIVES = {"freethreading_compatible": True, "subinterpreters_compatible": "no"}


def extension(module, source, flags=()):
    return Extension(
        f"fastce._kernels.{module}",
        [f"{HERE}/{source}.pyx"],
        depends=HEADERS,
        include_dirs=[HERE, np.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=[*FLAGS, *NO_DEBUGGING, *(MINGW_FLAGS if sys.platform == "win32" else ()), *flags],
    )


class BuildWhatTheCompilerTakes(build_ext):
    """Drops levels whose flags the compiler refuses, adds OpenMP where it has it, compiles on all cores."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        if sys.platform == "win32":  # Microsoft's compiler does not know the vectors of GCC and Clang
            self.compiler = self.compiler or "mingw32"

    def run(self):
        super().run()
        if not self.inplace:  # `python -m fastce` in a clone finds the clone before the installation
            self.copy_extensions_to_source()

    def build_extensions(self):
        self.extensions = [e for e in self.extensions if self.takes(e.extra_compile_args)]
        # Asked once: what show_config says of one extension holds for all of them.
        openmp = Extension("openmp", [])
        add_openmp_flags_if_available(openmp)
        for ext in self.extensions:
            ext.extra_compile_args += openmp.extra_compile_args
            ext.extra_link_args += openmp.extra_link_args
        super().build_extensions()

    def takes(self, flags):
        with TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text("int probe;\n")
            try:
                self.compiler.compile([str(probe)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                print(f"fastce: this compiler does not take {' '.join(flags)}; building without that level")
                return False
        return True


shared = [extension(source.replace("/", "."), source) for source in SHARED]
modules = cythonize(shared, build_dir="build/cython", compiler_directives=DIRECTIVES)
for level in BUILT:  # a folder each, or the levels would share one C file
    leveled = [extension(f"_{source}_{level}", f"entry/{source}", LEVELS[level]) for source in SOURCES]
    modules += cythonize(leveled, build_dir=f"build/cython-{level}", compiler_directives=DIRECTIVES)

setup(ext_modules=modules, cmdclass={"build_ext": BuildWhatTheCompilerTakes})
