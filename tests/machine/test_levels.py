"""Which level each processor gets that there could be; and that it finds no instruction it lacks."""

import hashlib
import importlib.util
import itertools
import platform
import re
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_config import python

import fastce
from fastce._kernels.machine import cpu

pytestmark = pytest.mark.once

# Said once more here: a feature forgotten in fastce/_kernels/__init__.py is a crash on somebody's machine.
V3 = {"avx2", "fma", "f16c", "bmi2"}
V4 = V3 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
NEEDS = {"baseline": set(), "v3": V3, "v4": V4}

ON_X86 = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="only Linux on x86-64 has levels beside the baseline",
)


# ---- The choice ----------------------------------------------------------------------------------


@pytest.fixture
def play(monkeypatch):
    """fastce/_kernels/__init__.py anew, on a processor with some features, with some levels built."""

    def play(features, built=tuple(NEEDS), forced=None):
        machine = ModuleType("played.machine")
        machine.cpu, machine.forks = ModuleType("played.machine.cpu"), ModuleType("played.machine.forks")
        machine.cpu.features = lambda: frozenset(features)
        machine.waits = ModuleType("played.machine.waits")
        machine.waits.load_runtime = lambda: None
        monkeypatch.setitem(sys.modules, "played.machine", machine)
        for level, kind in itertools.product(NEEDS, ("kernels", "elementwise")):
            name = f"played._{kind}_{level}"
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)
            if level not in built:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.delenv("FASTCE_LEVEL", raising=False)
        if forced is not None:
            monkeypatch.setenv("FASTCE_LEVEL", forced)
        source = fastce._kernels.__file__
        spec = importlib.util.spec_from_file_location("played", source)
        spec.submodule_search_locations = []  # a package, without the modules that lie beside the source
        package = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "played", package)
        spec.loader.exec_module(package)
        return package

    return play


def names_in_use(package):
    return package.kernels.__name__, package.elementwise.__name__


def modules_of(level):
    return f"played._kernels_{level}", f"played._elementwise_{level}"


@pytest.mark.parametrize(
    "built", [("baseline", "v3", "v4"), ("baseline", "v3"), ("baseline", "v4"), ("baseline",)], ids="+".join
)
def test_every_processor(play, built):
    """All 256 sets of features: the most demanding of the levels built all of whose features are there."""
    for n in range(len(V4) + 1):
        for features in itertools.combinations(sorted(V4), n):
            possible = [level for level in built if NEEDS[level] <= set(features)]
            package = play(features, built)
            assert package.built() == built
            assert list(package.runnable()) == possible, features
            assert names_in_use(package) == modules_of(possible[-1]), features


# Some that exist, and some that virtual machines make up.
PROCESSORS = {
    "Nehalem": set(),
    "Piledriver: FMA without AVX2": {"fma", "f16c"},
    "Haswell, Zen 3": V3,
    "a virtual machine without F16C": V4 - {"f16c"},
    "a virtual machine without FMA": V4 - {"fma"},
    "Knights Landing: AVX-512 F alone": V3 | {"avx512f"},
    "AVX-512 without DQ": V4 - {"avx512dq"},
    "AVX-512 without VL": V4 - {"avx512vl"},
    "Skylake-X, Zen 4": V4,
}


@pytest.mark.parametrize("built", [("baseline", "v3", "v4"), ("baseline", "v4")], ids="+".join)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_forced(play, processor, built):
    """A level that was asked for is the one in use, or there is an error that names what could be."""
    features = PROCESSORS[processor]
    possible = [level for level in built if NEEDS[level] <= features]
    for level in (*NEEDS, "v5", "V3", " v3", "avx2"):
        if level in possible:
            assert names_in_use(play(features, built, level)) == modules_of(level)
            continue
        with pytest.raises(ImportError) as caught:
            play(features, built, level)
        message = str(caught.value)
        assert repr(level) in message
        assert f"possible are {', '.join(possible)} " in message
        assert f"built: {', '.join(built)};" in message
        assert "FASTCE_LEVEL" in message
    assert names_in_use(play(features, built, "")) == modules_of(possible[-1])


def test_a_level_that_cannot_run_is_not_loaded(play):
    package = play(V3)
    for kind in ("kernels", "elementwise"):
        assert package.load("v3", kind).__name__ == f"played._{kind}_v3"
        with pytest.raises(ImportError, match="possible are baseline, v3 "):
            package.load("v4", kind)


def test_features_go_with_flags():
    """A level asks for exactly what its flags let the compiler use; each of it is looked for."""
    setup = Path(__file__).parents[2].joinpath("setup.py").read_text()
    lines = [re.search(pattern, setup)[1] for pattern in (r"\nV3 = (.+)", r'"v4": (.+)')]
    v3, v4 = (set(re.findall(r'"-m(\w+)"', line)) for line in lines)
    assert fastce._kernels.LEVELS == NEEDS
    assert (v3, v3 | v4) == (V3, V4)
    assert set(cpu.FEATURES) == V4


@ON_X86
def test_features_of_this_processor():
    """Linux lists what the processor has and the system saves the registers of."""
    info = Path("/proc/cpuinfo").read_text()
    listed = set(re.search(r"^flags\s*: (.+)$", info, re.MULTILINE)[1].split())
    assert cpu.features() == listed & V4


# ---- A lesser processor, played to the real modules ---------------------------------------------

RUN = """
import hashlib, sys, types
cpu = types.ModuleType("fastce._kernels.machine.cpu")
cpu.features, cpu.compiler = lambda: frozenset({features}), lambda: "played"
sys.modules["fastce._kernels.machine.cpu"] = cpu
import numpy as np
import fastce
x = np.random.default_rng(0).normal(size=(64, 1003)).astype(np.float32)
loss, grad = fastce.cross_entropy_and_grad(x, np.arange(64))
binary = fastce.binary_cross_entropy_with_logits(x, x > 0, reduction="none")
print(fastce.show_config(mode="dict")["level"], loss.hex(), hashlib.sha256(grad).hexdigest(),
      hashlib.sha256(binary).hexdigest())
"""


@pytest.mark.parametrize("name", fastce._kernels.runnable())
def test_bits_on_a_lesser_processor(name, monkeypatch):
    for module in ("kernels", "elementwise"):
        monkeypatch.setattr(fastce._kernels, module, fastce._kernels.load(name, module))
    x = np.random.default_rng(0).normal(size=(64, 1003)).astype(np.float32)
    loss, grad = fastce.cross_entropy_and_grad(x, np.arange(64))
    binary = fastce.binary_cross_entropy_with_logits(x, x > 0, reduction="none")
    done = python(RUN.format(features=NEEDS[name]))
    assert done.returncode == 0, done.stderr
    digests = [hashlib.sha256(a).hexdigest() for a in (grad, binary)]
    assert done.stdout.split() == [name, loss.hex(), *digests]


# ---- What is in the modules ----------------------------------------------------------------------

# Of SSE3, SSSE3, SSE4 and of general registers. Not tzcnt: where it is unknown it is bsf, and compilers count
# on that.
BEYOND_SSE2 = re.compile(
    r"haddp[sd]|hsubp[sd]|addsubp[sd]|movddup|movs[hl]dup|lddqu|fisttp.*"
    r"|pshufb|ph(add|sub)s?[wd]|pabs[bwd]|palignr|psign[bwd]|pmaddubsw|pmulhrsw"
    r"|p?blend.*|pmulld|pmuldq|p(min|max)(sb|sd|uw|ud)|round[ps][sd]|p(insr|extr)[bdq]|insertps|extractps|ptest"
    r"|pmov[sz]x.*|packusdw|pcmpeqq|pcmpgtq|movntdqa|dpp[sd]|mpsadbw|phminposuw|pcmp[ei]str.*|crc32.?"
    r"|popcnt.?|lzcnt.?|movbe.?|andn.?|bls[ir].?|blsmsk.?|bextr.?|bzhi.?|mulx.?|p(dep|ext)[lq]?|rorx.?|s[ahr][lr]x.?"
)
ABOVE_AVX2 = re.compile(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b|\{z\}|\{1to")


def machine_code(module):
    """Mnemonics of a compiled module, and all of its text."""
    objdump = shutil.which("objdump")
    if not objdump:
        pytest.skip("NOT CHECKED: no objdump here (it is part of binutils, which comes with GCC)")
    command = [objdump, "-d", "--no-show-raw-insn", module]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    instruction = r"^ +[0-9a-f]+:\t(?:(?:rep\w*|lock|bnd|notrack|data16) )*(\S+)"
    return set(re.findall(instruction, text, re.MULTILINE)), text


def built_modules():
    folder = Path(fastce._kernels.__file__).parent
    return {path.name.split(".")[0]: path for path in sorted(folder.glob("*.so"))}


@ON_X86
@pytest.mark.parametrize("name", built_modules())
def test_no_instruction_above_its_level(name):
    """Also in what runs before there is a level, and on the way to the error that one cannot run."""
    mnemonics, text = machine_code(built_modules()[name])
    level = name.rpartition("_")[2]
    assert all(any(m.startswith(word) for m in mnemonics) for word in ("ret", "call", "mov"))  # it was read
    if level == "v4":
        assert "%zmm" in text
    elif level == "v3":
        assert "%ymm" in text
        assert not ABOVE_AVX2.search(text)
    else:
        assert not {m for m in mnemonics if m.startswith("v") or BEYOND_SSE2.fullmatch(m)}
        assert not re.search(r"%[yz]mm|%k[0-7]\b", text)


@ON_X86
def test_levels_use_what_they_ask_for():
    """Else the level is not worth its module; and the registers above are looked for in the right words."""
    names = [f"_{kind}_{level}" for kind in ("kernels", "elementwise") for level in fastce._kernels.built()]
    found = {name: machine_code(built_modules()[name])[0] for name in names}
    for name, mnemonics in found.items():
        above = not name.endswith("baseline")
        assert any(m.startswith("vfmadd") for m in mnemonics) == above, name
        assert ("vcvtph2ps" in mnemonics) == above, name
