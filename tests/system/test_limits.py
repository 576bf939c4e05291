"""How many cores and how much memory are usable, on systems made of files.

Law: the least of what the machine has, what this process may have, and what all control groups around it allow; what
cannot be read says nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from conveyor._system import limits
from conveyor._system.limits import _limits, _physical, _quotas, usable_cores, usable_memory
from tests.helpers.support import TestCase, control_groups

# What version 1 says where there is no limit.
BOUNDLESS = 9223372036854771712


class Quotas(TestCase):
    """The control groups of this process, and those around them."""

    def quotas(self, membership: str, files: dict[str, str]) -> list[float]:
        """The quotas on a system with these files in /sys/fs/cgroup."""
        with control_groups(membership, files) as (root, own):
            return sorted(_quotas(root, own))

    def test_version_2(self) -> None:
        assert self.quotas("0::/\n", {"cpu.max": "150000 100000\n"}) == [1.5]

    def test_version_2_without_a_limit(self) -> None:
        assert self.quotas("0::/\n", {"cpu.max": "max 100000\n"}) == []

    def test_version_2_all_groups_around_count(self) -> None:
        files = {
            "one/cpu.max": "400000 100000\n",
            "one/two/cpu.max": "max 100000\n",
            "one/two/three/cpu.max": "50000 100000\n",
            "other/cpu.max": "10000 100000\n",
            "one/two/three/four/cpu.max": "10000 100000\n",
        }
        assert self.quotas("0::/one/two/three\n", files) == [0.5, 4.0]

    def test_version_2_in_a_container_that_sees_only_its_own_root(self) -> None:
        assert self.quotas("0::/docker/abc\n", {"cpu.max": "200000 100000\n"}) == [2.0]

    def test_a_path_out_of_the_hierarchy(self) -> None:
        assert self.quotas("0::/../..\n", {"cpu.max": "200000 100000\n"}) == [2.0]

    def test_version_1(self) -> None:
        files = {
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "cpu/one/cpu.cfs_quota_us": "250000\n",
            "cpu/one/cpu.cfs_period_us": "100000\n",
        }
        assert self.quotas("4:memory:/one\n3:cpu,cpuacct:/one\n1:name=systemd:/one\n", files) == [2.5]

    def test_version_1_another_controller_has_cpu_in_its_name(self) -> None:
        files = {"cpu/one/cpu.cfs_quota_us": "250000\n", "cpu/one/cpu.cfs_period_us": "100000\n"}
        assert self.quotas("3:cpuset:/one\n", files) == []

    def test_both_versions(self) -> None:
        files = {
            "cpu.max": "300000 100000\n",
            "cpu/cpu.cfs_quota_us": "100000\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        }
        assert self.quotas("3:cpu:/\n0::/\n", files) == [1.0, 3.0]

    def test_what_cannot_be_understood_says_nothing(self) -> None:
        for text in ("", "100000\n", "100000 0\n", "many few\n", "1 2 3\n", "-1 100000\n"):
            with self.subTest(text=text):
                assert self.quotas("0::/\n", {"cpu.max": text}) == []

    def test_no_control_groups(self) -> None:
        assert self.quotas("", {}) == []
        assert self.quotas("0::/one\n", {}) == []
        assert _quotas(Path("/nowhere/at/all"), Path("/nowhere/else")) == []

    def test_a_colon_in_a_path(self) -> None:
        assert self.quotas("0::/a:b\n", {"a:b/cpu.max": "100000 100000\n"}) == [1.0]


class LeastCores(TestCase):
    """The least of all counts."""

    def usable(self, count: int | None, affinity: int, quotas: list[float]) -> int:
        """The cores of a system that says this."""
        with (
            mock.patch.object(os, "cpu_count", return_value=count),
            mock.patch.object(os, "sched_getaffinity", return_value=set(range(affinity)), create=True),
            mock.patch.object(limits, "_quotas", return_value=quotas),
        ):
            return usable_cores()

    def test_each_can_be_the_least(self) -> None:
        assert self.usable(4, 8, [8.0]) == 4
        assert self.usable(8, 3, [8.0]) == 3
        assert self.usable(8, 8, [5.0, 2.0]) == 2

    def test_part_of_a_core_is_a_core(self) -> None:
        assert self.usable(8, 8, [1.5]) == 2
        assert self.usable(8, 8, [0.1]) == 1

    def test_there_is_always_one(self) -> None:
        assert self.usable(None, 8, []) == 1
        assert self.usable(4, 4, [0.0]) == 1

    def test_systems_without_affinity(self) -> None:
        plain = mock.Mock(spec=["cpu_count", "fspath"], cpu_count=lambda: 6, fspath=os.fspath)
        with mock.patch.object(limits, "os", plain):
            assert usable_cores() <= 6

    def test_here(self) -> None:
        assert 1 <= usable_cores() <= (os.cpu_count() or 1)


class MemoryLimits(TestCase):
    """The control groups of this process, and those around them."""

    def limits(self, membership: str, files: dict[str, str]) -> list[int]:
        """The limits on a system with these files in /sys/fs/cgroup."""
        with control_groups(membership, files) as (root, own):
            return sorted(_limits(root, own))

    def test_version_2(self) -> None:
        assert self.limits("0::/\n", {"memory.max": "536870912\n"}) == [536870912]

    def test_version_2_without_a_limit(self) -> None:
        assert self.limits("0::/\n", {"memory.max": "max\n", "memory.high": "max\n"}) == []

    def test_version_2_what_slows_everything_down_is_a_limit_too(self) -> None:
        assert self.limits("0::/\n", {"memory.max": "3000000\n", "memory.high": "2000000\n"}) == [2000000, 3000000]

    def test_version_2_all_groups_around_count(self) -> None:
        files = {
            "one/memory.max": "4000000\n",
            "one/two/memory.max": "max\n",
            "one/two/three/memory.max": "5000000\n",
            "other/memory.max": "1000000\n",
            "one/two/three/four/memory.max": "1000000\n",
        }
        assert self.limits("0::/one/two/three\n", files) == [4000000, 5000000]

    def test_version_2_in_a_container_that_sees_only_its_own_root(self) -> None:
        assert self.limits("0::/docker/abc\n", {"memory.max": "2000000\n"}) == [2000000]

    def test_version_1(self) -> None:
        files = {
            "memory/memory.limit_in_bytes": f"{BOUNDLESS}\n",
            "memory/one/memory.limit_in_bytes": "2000000\n",
            "memory/memory.max": "1000000\n",
            "cpu/one/memory.limit_in_bytes": "1000000\n",
        }
        membership = "4:memory:/one\n3:cpu,cpuacct:/one\n1:name=systemd:/one\n"
        assert self.limits(membership, files) == [2000000, BOUNDLESS]

    def test_both_versions(self) -> None:
        files = {"memory.max": "3000000\n", "memory/memory.limit_in_bytes": "2000000\n"}
        assert self.limits("3:memory:/\n0::/\n", files) == [2000000, 3000000]

    def test_what_cannot_be_understood_says_nothing(self) -> None:
        for text in ("", "0\n", "-1\n", "much\n", "1 2\n"):
            with self.subTest(text=text):
                assert self.limits("0::/\n", {"memory.max": text}) == []

    def test_no_control_groups(self) -> None:
        assert self.limits("", {}) == []
        assert self.limits("0::/one\n", {}) == []
        assert _limits(Path("/nowhere/at/all"), Path("/nowhere/else")) == []


class LeastMemory(TestCase):
    """The least of all numbers."""

    def usable(self, physical: list[int], groups: list[int]) -> int | None:
        """The memory of a system that says this."""
        with (
            mock.patch.object(limits, "_physical", return_value=physical),
            mock.patch.object(limits, "_limits", return_value=groups),
        ):
            return usable_memory()

    def test_each_can_be_the_least(self) -> None:
        assert self.usable([8000], [9000, BOUNDLESS]) == 8000
        assert self.usable([8000], [9000, 7000]) == 7000

    def test_one_may_be_missing(self) -> None:
        assert self.usable([], [7000]) == 7000
        assert self.usable([8000], []) == 8000

    def test_nobody_knows(self) -> None:
        assert self.usable([], []) is None

    def test_physical(self) -> None:
        said = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
        with mock.patch.object(os, "sysconf", said.__getitem__, create=True):
            assert _physical() == [4096000]
            said["SC_PHYS_PAGES"] = -1
            assert _physical() == []

    def test_systems_that_do_not_say(self) -> None:
        with mock.patch.object(limits, "os", mock.Mock(spec=[])):
            assert _physical() == []
        with mock.patch.object(os, "sysconf", side_effect=ValueError, create=True):
            assert _physical() == []

    def test_here(self) -> None:
        found = usable_memory()
        assert found is None or found > 1_000_000
