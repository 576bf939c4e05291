"""A job that waits for a server: asyncio and threads by hand, and each way in which Conveyor makes many calls at once.

A server in a process of its own gives pages, and each takes it 60 ms.  Each way fetches them in a program of its own,
whose start counts for nothing; the ways take turns.  Memory is the largest PSS seen of a program with its processes, so
pages that these share count once.

    python3 benchmarks/waiting.py [--rounds 5] [--pages 3000] [way ...]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measuring import tree_memory

# The last place to look: where Conveyor is not installed, that of the checkout is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from conveyor import Pipeline, Processor

ANSWER_SECONDS = 0.06
SAMPLE_SECONDS = 0.05
AT_ONCE = 32
MANY = 100
Page = tuple[int, int]


async def fetch(page: Page) -> int:
    """Fetch a page in an event loop; return its length."""
    port, number = page
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /{number} HTTP/1.0\r\n\r\n".encode())
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    return len(body)


def read(page: Page) -> int:
    """Fetch a page, and wait for it; return its length."""
    port, number = page
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{number}") as reply:
        return len(reply.read())


async def by_hand(pages: list[Page]) -> list[int]:
    """Fetch all pages with asyncio alone."""
    free = asyncio.Semaphore(MANY)

    async def one(page: Page) -> int:
        async with free:
            return await fetch(page)

    return await asyncio.gather(*map(one, pages))


def in_threads(pages: list[Page]) -> list[int]:
    """Fetch all pages with an executor alone."""
    with ThreadPoolExecutor(AT_ONCE) as executor:
        return list(executor.map(read, pages))


def conveyed(job: Callable[[Page], Any], **settings: Any) -> Callable[[list[Page]], list[int]]:
    """Return what fetches all pages with one Processor."""
    return lambda pages: Pipeline().add(Processor(job, **settings)).run(pages)


WAYS: dict[str, Callable[[list[Page]], list[int]]] = {
    "asyncio": lambda pages: asyncio.run(by_hand(pages)),
    "executor": in_threads,
    "concurrency": conveyed(fetch, concurrency=MANY),
    "threads": conveyed(read, threads=AT_ONCE),
    "workers": conveyed(read, workers=AT_ONCE),
    "auto": conveyed(read, workers="auto"),
}
TITLES = {
    "asyncio": f"asyncio by hand, {MANY} at once",
    "executor": f"ThreadPoolExecutor({AT_ONCE}).map",
    "concurrency": f"Processor(concurrency={MANY})",
    "threads": f"Processor(threads={AT_ONCE})",
    "workers": f"Processor(workers={AT_ONCE})",
    "auto": 'Processor(workers="auto")',
}


async def serve() -> None:
    """Be the server: print the port, and answer until the standard input ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(ANSWER_SECONDS)
        body = b"word " * int(head.split()[1].strip(b"/"))
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def run(way: str, port: int, pages: int) -> None:
    """Fetch the pages in this process, and print how many seconds that took."""
    wanted = [(port, number) for number in range(pages)]
    begun = time.perf_counter()
    lengths = WAYS[way](wanted)
    seconds = time.perf_counter() - begun
    assert lengths == [5 * number for number in range(pages)]
    print(seconds)


def measured(way: str, port: int, pages: int) -> tuple[float, int]:
    """Return the seconds of a program that fetches the pages, and the bytes that its processes had at most."""
    command = [sys.executable, __file__, "--pages", str(pages), "--port", str(port), way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        largest = 0
        while program.poll() is None:
            largest = max(largest, tree_memory(program.pid))
            time.sleep(SAMPLE_SECONDS)
        assert program.stdout is not None
        return float(program.stdout.read()), largest


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", nargs="*", metavar="way", help=f"some of {', '.join(WAYS)}; all without any")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pages", type=int, default=3000)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [way for way in arguments.ways if way not in WAYS]:
        parser.error(f"there is no way {unknown[0]!r}; there are {', '.join(WAYS)}")
    if arguments.serve:
        asyncio.run(serve())
        return
    if arguments.port is not None:
        run(arguments.ways[0], arguments.port, arguments.pages)
        return
    ways = arguments.ways or list(WAYS)
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        port = int(server.stdout.readline())
        for turn in range(arguments.rounds):
            for place in range(len(ways)):
                # Each is first in turn.
                way = ways[(turn + place) % len(ways)]
                found[way].append(measured(way, port, arguments.pages))
        server.stdin.close()
    print(f"Python {'.'.join(map(str, sys.version_info[:3]))}, {os.cpu_count()} cores; {arguments.pages:,} pages")
    print(f"{'way':32}{'seconds':>9}{'least':>9}{'most':>9}{'MB':>8}")
    for way, runs in found.items():
        seconds, sizes = zip(*runs, strict=True)
        times = f"{statistics.median(seconds):9.2f}{min(seconds):9.2f}{max(seconds):9.2f}"
        print(f"{TITLES[way]:32}{times}{statistics.median(sizes) / 1e6:8.0f}")


if __name__ == "__main__":
    main()
