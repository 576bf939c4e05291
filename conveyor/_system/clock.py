"""The clocks of the system, whatever a test suite has put in their place.

Law: tests freeze or replace clocks for the code of the program.  Conveyor's own waits and timeouts stay real, in
each of its processes.  No other module of the package imports `time`.
"""

from __future__ import annotations

import threading

from conveyor._lean.typing import TYPE_CHECKING

if TYPE_CHECKING:
    import time as time
else:

    def _copy_of_time():
        """Return the module `time` made once more, with functions of its own.

        What replaces clocks (freezegun, `unittest.mock`) looks for the functions that everybody else imports, and may
        have replaced them before this module was imported.
        """
        import time

        copy = time.__spec__.loader.create_module(time.__spec__)
        time.__spec__.loader.exec_module(copy)
        return copy

    time = _copy_of_time()


def sleep(seconds: float) -> None:
    """Wait in this thread alone: where gevent or eventlet has replaced threads, the others go on."""
    threading.Event().wait(seconds)
