"""Network namespaces of Linux: nodes on one machine, each with a cable of its own that can be pulled out.

Law: a namespace is named after this process, and removed at the end.  Nothing changes in the network of the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess


def why_no_namespaces() -> str:
    """Return why there can be none here; "" where there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip`"
    probe = f"conveyor-{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made: {error.stderr.decode(errors='replace').strip()}"
    _ip("netns", "delete", probe)
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Namespaces:
    """A namespace "head", and "node0", "node1" ..., each with a cable to it.

    `heads` and `nodes` are the addresses at both ends of each cable.
    """

    def __init__(self, nodes: int) -> None:
        self.heads = [f"10.213.{index}.1" for index in range(nodes)]
        self.nodes = [f"10.213.{index}.2" for index in range(nodes)]
        self._names: list[str] = []
        try:
            self._add("head")
            for index in range(nodes):
                self._add(f"node{index}")
                node = self._name(f"node{index}")
                _ip(
                    "-n",
                    self._name("head"),
                    "link",
                    "add",
                    f"to{index}",
                    "type",
                    "veth",
                    "peer",
                    "cable",
                    "netns",
                    node,
                )
                for where, link, address in (
                    (self._name("head"), f"to{index}", self.heads[index]),
                    (node, "cable", self.nodes[index]),
                ):
                    _ip("-n", where, "address", "add", f"{address}/30", "dev", link)
                    _ip("-n", where, "link", "set", link, "up")
        except BaseException:
            self.close()
            raise

    def _name(self, what: str) -> str:
        return f"conveyor-{os.getpid()}-{what}"

    def _add(self, what: str) -> None:
        _ip("netns", "add", self._name(what))
        self._names.append(self._name(what))
        _ip("-n", self._name(what), "link", "set", "lo", "up")

    def inside(self, what: str) -> list[str]:
        """The words before a command that is to run in there."""
        return ["ip", "netns", "exec", self._name(what)]

    def cut(self, index: int) -> None:
        """Pull out the cable of a node; its sockets, and those to it, stay open."""
        _ip("-n", self._name(f"node{index}"), "link", "set", "cable", "down")

    def mend(self, index: int) -> None:
        """Put it in again."""
        _ip("-n", self._name(f"node{index}"), "link", "set", "cable", "up")

    def close(self) -> None:
        """Remove them all."""
        while self._names:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", self._names.pop())
