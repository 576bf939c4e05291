"""The sockets and threads of one page: a thread that takes connections, and one for each connection.

Law: there is a bound to everything: connections, streams, and how long a silent client or the end is waited for.  All
threads end before a broker is forked, and begin again behind that.  In a process that the program forks itself, the
sockets are closed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import weakref
from http.server import HTTPServer

from conveyor._lean.typing import Any
from conveyor._system.clock import time
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.serving.address import HOST
from conveyor.serving.requests import MOST_STREAMS, Answers, Handler

MOST_CONNECTIONS = 32
# How long the end, or a fork, waits for answers that are on their way, and then for threads whose socket was shut.
ANSWER_SECONDS = 0.5
THREAD_SECONDS = 1.0
# After an error of `accept`, as where no descriptor is left.
PAUSE_SECONDS = 0.1
_TOO_MANY = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
    b"There are too many connections to this page.\n"
)
_servers: weakref.WeakSet[Server] = weakref.WeakSet()


class Server(HTTPServer):
    """Listens from the beginning on; raises OSError where the port cannot be had."""

    # On Windows this would let other programs have the same port.
    allow_reuse_address = os.name == "posix"
    request_queue_size = 32

    def __init__(self, port: int, answers: Answers) -> None:
        self.answers = answers
        # Set while the threads are to end; and whether they will not begin again.
        self.stopping = threading.Event()
        self.closing = False
        self.streams = threading.BoundedSemaphore(MOST_STREAMS)
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._clients: dict[threading.Thread, socket.socket] = {}
        super().__init__((HOST, port), Handler)
        self._waker, self._waked = socket.socketpair()
        for each in (self._waked, self.socket):
            each.setblocking(False)
        _servers.add(self)
        gate.pausing.append(self)

    def server_bind(self) -> None:
        """Bind, without the question to a server of names that the base asks."""
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        elif self.allow_reuse_address:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, self.server_address[1]

    # The threads

    def resume(self) -> None:
        """Start to take connections; does nothing where that is so, or the page is closed."""
        with self._lock:
            if self._thread is None and not self.closing and os.getpid() == self._owner:
                self.stopping.clear()
                thread = threading.Thread(target=self._take_connections, name="conveyor-page", daemon=True)
                # Where the system has no thread left, there is no page.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread

    def suspend(self) -> None:
        """End all threads, within a bound; who connects meanwhile waits."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None or os.getpid() != self._owner:
                return
            self.stopping.set()
            with contextlib.suppress(OSError):
                self._waker.send(b"x")
        _join([thread], THREAD_SECONDS)
        # Who has sent no request yet gets none, and what is being sent comes to its end.
        for how, seconds in ((socket.SHUT_RD, ANSWER_SECONDS), (socket.SHUT_RDWR, THREAD_SECONDS)):
            with self._lock:
                clients = dict(self._clients)
            for connection in clients.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(how)
            if _join(clients, seconds):
                return

    def close(self) -> None:
        """End all threads, and give the port back."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self.closing:
                return
            self.closing = True
        try:
            self.suspend()
        finally:
            with contextlib.suppress(ValueError):
                gate.pausing.remove(self)
            for each in (self.socket, self._waker, self._waked):
                each.close()

    def _take_connections(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._waked, selectors.EVENT_READ)
            while not self.stopping.is_set():
                ready = [key.fileobj for key, _ in selector.select()]
                if self._waked in ready:
                    with contextlib.suppress(OSError):
                        self._waked.recv(64)
                if self.socket in ready and not self.stopping.is_set():
                    self._take_connection()

    def _take_connection(self) -> None:
        try:
            connection, address = self.get_request()
        except BlockingIOError:
            return
        except OSError:
            self.stopping.wait(PAUSE_SECONDS)
            return
        with self._lock:
            has_room = len(self._clients) < MOST_CONNECTIONS
        if not has_room:
            with contextlib.suppress(OSError):
                connection.setblocking(False)
                connection.send(_TOO_MANY)
            self.shutdown_request(connection)
            return
        thread = threading.Thread(
            target=self._answer, args=(connection, address), name="conveyor-page-client", daemon=True
        )
        with self._lock:
            self._clients[thread] = connection
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                del self._clients[thread]
            self.shutdown_request(connection)

    def _answer(self, connection: socket.socket, address: Any) -> None:
        try:
            self.finish_request(connection, address)
        except (OSError, ValueError):
            # The client has gone, or is silent.  ValueError: its socket is closed.
            pass
        except Exception as error:
            self.answers.report(error)
        finally:
            # Before it is closed: its number may be another's then.
            with self._lock:
                self._clients.pop(threading.current_thread(), None)
            self.shutdown_request(connection)

    def forget(self) -> None:
        """Close what a forked process has of the page; that has no thread of it."""
        self._lock = threading.RLock()
        for each in (self.socket, self._waker, self._waked, *self._clients.values()):
            with contextlib.suppress(OSError, ValueError):
                descriptor = each.detach()
                if descriptor >= 0:
                    os.close(descriptor)
        self._clients.clear()


def _join(threads: Any, seconds: float) -> bool:
    """Wait for threads to end; return whether all have."""
    deadline = time.monotonic() + seconds
    # A finalizer may close the page in a thread of its own.
    others = [thread for thread in threads if thread is not threading.current_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in others)


def _forget_all() -> None:
    for server in list(_servers):
        server.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
