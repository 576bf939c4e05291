"""A terminal in memory: what a person would see of what a program has written, and a program that runs on one."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Mapping

from tests.helpers.support import ROOT

# What moves the cursor or deletes something, what only changes colours, and single characters.
PIECES = re.compile(r"\x1b\[([\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")


class Screen:
    """Lines that only grow at the end; the cursor goes up as far as the window is high."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns = columns
        self.rows = rows
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0
        # All that changed colours.
        self.colours: list[str] = []

    def feed(self, text: str) -> None:
        for match in PIECES.finditer(text):
            if match[2] is not None:
                self._control(match[2], match[1])
            elif match[0] == "\r":
                self._column = 0
            elif match[0] == "\n":
                self._down()
            else:
                self._put(match[0])

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append([])

    def _put(self, letter: str) -> None:
        if self._column == self.columns:
            self._column = 0
            self._down()
        line = self._lines[self._row]
        line += " " * (self._column + 1 - len(line))
        line[self._column] = letter
        self._column += 1

    def _control(self, kind: str, numbers: str) -> None:
        if kind == "m":
            self.colours.append(numbers)
        elif kind == "A":
            top = max(0, len(self._lines) - self.rows)
            self._row = max(top, self._row - int(numbers or 1))
        elif kind in "KJ" and numbers in ("", "0"):
            del self._lines[self._row][self._column :]
            if kind == "J":
                del self._lines[self._row + 1 :]
        else:
            raise AssertionError(f"the terminal does not know {numbers}{kind}")

    @property
    def lines(self) -> list[str]:
        """All lines, those that have left the window included, without what is empty at the end."""
        lines = ["".join(line).rstrip() for line in self._lines]
        while lines and not lines[-1]:
            lines.pop()
        return lines


class Terminal:
    """A program in a terminal of this size, from its start to its end."""

    def __init__(self, arguments: list[str], folder: str, columns: int = 80, rows: int = 24, **changes: str) -> None:
        import fcntl
        import pty
        import termios

        environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")},
            **{"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "TERM": "xterm-256color"},
            **changes,
        }
        self.screen = Screen(columns, rows)
        self._pid, self._end = pty.fork()
        if not self._pid:
            os.chdir(folder)
            # Before the program looks.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execve(sys.executable, [sys.executable, "-W", "error", *arguments], environment)

    def write(self, text: str) -> None:
        """Press these keys."""
        os.write(self._end, text.encode())

    def read_until(self, words: str) -> None:
        """Take in what the program writes until the screen has these words."""
        while not any(words in line for line in self.screen.lines):
            if not self._read():
                raise AssertionError(f"the program ended before it showed {words!r}:\n" + "\n".join(self.screen.lines))

    def _read(self) -> bool:
        try:
            more = os.read(self._end, 65536)
        except OSError:
            return False
        # A character may come in two pieces.
        while more and more[-1] >= 0x80:
            try:
                more.decode()
                break
            except UnicodeDecodeError:
                more += os.read(self._end, 1)
        self.screen.feed(more.decode())
        return bool(more)

    def end(self) -> int:
        """Take in the rest, and return the exit status."""
        try:
            while self._read():
                pass
        finally:
            os.close(self._end)
            _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)
