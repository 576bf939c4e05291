"""What a worker's job prints, sent to the caller beside the results.

Law: a new interpreter imports this only where its caller has replaced `sys.stdout` or `sys.stderr`.  A line is sent
when it is complete, and the rest when it is flushed or a message follows.  Where the channel is no longer this
process's, its own descriptor takes the text.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import deque

from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor.engines.process.system.streams import STANDARD_STREAMS
from conveyor.engines.process.wire.endpoint import ConnectionLost
from conveyor.engines.process.wire.messages import Printed

if TYPE_CHECKING:
    from conveyor.engines.process.worker.log_capture import SharedEndpoint

# Text without the end of a line is sent when a write is longer, or when there were so many writes.
LONG_CHARACTERS = 8192
MANY_WRITES = 512


class ForwardedStream(io.TextIOBase):
    """Stands in the place of a stream of `sys`, which is `previous`; any thread and signal handler may write to it.

    What such a stream has beyond the methods of text streams, `previous` has.
    """

    encoding = "utf-8"
    errors = "surrogatepass"
    newlines = None

    def __init__(self, end: SharedEndpoint, name: str, previous: Any) -> None:
        super().__init__()
        self.name = f"<{name}>"
        self.buffer: Any = _ForwardedBytes(self)
        self._end = end
        self._stream = name
        self._previous = previous
        # Appended to and popped from, both at once, so that no text is lost between two threads.
        self._unsent: deque[str] = deque()
        if hasattr(os, "register_at_fork"):
            # What a process that the job forks has inherited is its parent's to send.
            os.register_at_fork(after_in_child=self._unsent.clear)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_previous"], name)

    def writable(self) -> bool:
        """Whether one may write: always."""
        return True

    def fileno(self) -> int:
        """Return the descriptor that a program started with this stream writes to."""
        with contextlib.suppress(Exception):
            return int(self._previous.fileno())
        return STANDARD_STREAMS[self._stream]

    def write(self, text: str, /) -> int:
        """Take in text; raises TypeError and ValueError as any text stream does."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        self._unsent.append(str.__str__(text))
        ends = "\n" in text or "\r" in text
        if ends or len(text) > LONG_CHARACTERS or len(self._unsent) > MANY_WRITES:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what was written."""
        unsent = self._unsent
        parts = []
        with contextlib.suppress(IndexError):
            while unsent:
                parts.append(unsent.popleft())
        if parts:
            self.forward("".join(parts).encode(self.encoding, self.errors), is_binary=False)

    def forward(self, data: bytes, is_binary: bool) -> None:
        """Send it to the caller; where that is no more possible, write it to this process's own stream."""
        if not self._end.is_forked_copy:
            try:
                self._end.send_log(Printed(self._stream, is_binary), [data])
                return
            except ConnectionLost:
                pass
        own: Any = getattr(sys, f"__{self._stream}__")
        # It may be closed, or there may be none.
        with contextlib.suppress(Exception):
            if is_binary:
                own.buffer.write(data)
            else:
                own.write(data.decode(self.encoding, self.errors))
            own.flush()


class _ForwardedBytes(io.BufferedIOBase):
    """The `buffer` of such a stream: what is written to it goes at once, behind the text before it."""

    def __init__(self, text: ForwardedStream) -> None:
        super().__init__()
        self._text = text

    @property
    def name(self) -> str:
        return self._text.name

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def write(self, data: Any, /) -> int:
        # Raises TypeError for text, as any binary stream does.
        taken = bytes(memoryview(data))
        self._text.flush()
        self._text.forward(taken, is_binary=True)
        return len(taken)
