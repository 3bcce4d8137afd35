"""The quota of control groups, found in file trees as kernels and containers lay them out (xgboost #7653)."""

import pytest

from fastce._kernels.machine import cgroups

pytestmark = pytest.mark.once

V1 = "33 31 0:30 {inside} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "41 31 0:38 {inside} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
OTHERS = (
    "23 1 254:0 / / rw,relatime - ext4 /dev/root rw\n"
    "24 23 0:20 / /mnt/a\\040b rw,relatime - tmpfs  rw\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)


def tree(tmp_path, groups, mounts, files):
    """A root with /proc/self and what is mounted; `files`: names below /sys/fs/cgroup and contents."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    (tmp_path / "proc/self/mountinfo").write_text(OTHERS + mounts)
    for name, content in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return tmp_path


def v1(folder, quota, period=100_000):
    return {
        f"cpu,cpuacct/{folder}cpu.cfs_{k}_us": f"{v}\n" for k, v in {"quota": quota, "period": period}.items()
    }


CASES = {
    "v2 container": ("0::/\n", V2.format(inside="/"), {"cpu.max": "150000 100000\n"}, 1.5),
    "v2 without a limit": ("0::/\n", V2.format(inside="/"), {"cpu.max": "max 100000\n"}, None),
    "v2 group": (
        "0::/system.slice/a.service\n",
        V2.format(inside="/"),
        {"system.slice/a.service/cpu.max": "300000 100000\n", "system.slice/cpu.max": "max 100000\n"},
        3,
    ),
    "v2 the group around it is tighter": (
        "0::/system.slice/a.service\n",
        V2.format(inside="/"),
        {"system.slice/a.service/cpu.max": "300000 100000\n", "system.slice/cpu.max": "100000 100000\n"},
        1,
    ),
    "v2 group without the controller": (
        "0::/user.slice\n",
        V2.format(inside="/"),
        {"user.slice/cpu.stat": ""},
        None,
    ),
    "v2 of the host, seen from a container": (
        "0::/docker/abc\n",
        V2.format(inside="/docker/abc"),
        {"cpu.max": "50000 100000\n"},
        0.5,
    ),
    "v2 outside of the namespace": (
        "0::/../other\n",
        V2.format(inside="/"),
        {"cpu.max": "200000 100000\n"},
        2,
    ),
    "v1 container": ("4:cpu,cpuacct:/\n", V1.format(inside="/"), v1("", 250_000), 2.5),
    "v1 without a limit": ("4:cpu,cpuacct:/\n", V1.format(inside="/"), v1("", -1), None),
    "v1 other period": ("4:cpu,cpuacct:/\n", V1.format(inside="/"), v1("", 20_000, 10_000), 2),
    "v1 group": (
        "4:cpu,cpuacct:/docker/abc\n",
        V1.format(inside="/"),
        v1("docker/abc/", 200_000) | v1("", -1),
        2,
    ),
    "v1 of the host, seen from a container": (
        "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
        V1.format(inside="/docker/abc"),
        v1("", 100_000),
        1,
    ),
    "both, v1 has the controller": (
        "4:cpu,cpuacct:/a\n0::/a\n",
        V1.format(inside="/") + V2.format(inside="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        v1("a/", 400_000) | {"unified/a/cgroup.procs": ""},
        4,
    ),
    "v2 below a group whose file is empty": (
        "0::/a/b\n",
        V2.format(inside="/"),
        {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": ""},
        3,
    ),
    "v2 with a space in its path": (
        "0::/\n",
        V2.format(inside="/").replace("/cgroup ", "/cgroup/my\\040own "),
        {"my own/cpu.max": "200000 100000\n"},
        2,
    ),
    "no groups": ("", "", {}, None),
    "unknown format": ("nonsense\n", V2.format(inside="/"), {"cpu.max": "1 2 3\n"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_quota(case, tmp_path):
    groups, mounts, files, expected = CASES[case]
    assert cgroups.cpu_quota(tree(tmp_path, groups, mounts, files)) == expected


def test_other_systems_have_none(tmp_path):
    assert cgroups.cpu_quota(tmp_path) is None


def test_here():
    quota = cgroups.cpu_quota()
    assert quota is None or quota > 0
