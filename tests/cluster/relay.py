"""A link that can be cut: a program that passes bytes on between TCP connections.

Law: it does nothing else, so that SIGSTOP makes of it a cut cable: sockets stay open, and nothing comes through until
SIGCONT.  Then all comes that was on the way.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy what comes, until one end is closed; then end both."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def connect(near: socket.socket, port: int) -> None:
    """Pass on between one who has connected and a port of this machine."""
    with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as far:
        back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
        back.start()
        pass_on(near, far)
        back.join()


def serve(listener: socket.socket, port: int) -> None:
    """Pass on between all who connect and that port."""
    while True:
        near, _ = listener.accept()
        threading.Thread(target=connect, args=(near, port), daemon=True).start()


def main(ports: list[int]) -> None:
    """Listen once for each port, and print where."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in ports]
    print(*(listener.getsockname()[1] for listener in listeners), flush=True)
    threads = [threading.Thread(target=serve, args=each) for each in zip(listeners, ports, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main([int(port) for port in sys.argv[1:]])
