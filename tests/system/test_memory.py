"""How much memory is usable, on systems made of files.

Law: the least of the physical memory and the limits of all control groups around this process; what cannot be read
says nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from conveyor._system import memory
from conveyor._system.memory import _limits, _physical, usable_memory
from tests.helpers.support import TestCase, control_groups

# What version 1 says where there is no limit.
BOUNDLESS = 9223372036854771712


class Limits(TestCase):
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


class Least(TestCase):
    """The least of all numbers."""

    def usable(self, physical: list[int], limits: list[int]) -> int | None:
        """The memory of a system that says this."""
        with (
            mock.patch.object(memory, "_physical", return_value=physical),
            mock.patch.object(memory, "_limits", return_value=limits),
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
        with mock.patch.object(memory, "os", mock.Mock(spec=[])):
            assert _physical() == []
        with mock.patch.object(os, "sysconf", side_effect=ValueError, create=True):
            assert _physical() == []

    def test_here(self) -> None:
        found = usable_memory()
        assert found is None or found > 1_000_000
