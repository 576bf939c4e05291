"""A web service with a pipeline, beside the same with `ProcessPoolExecutor` and `run_in_executor`.

A FastAPI application under uvicorn answers requests of two jobs that use a core for a millisecond each.  One way has as
many workers as cores for each job of a pipeline.  The other has a pool of as many processes, which do both jobs in one
call.  So many connections are open at once, and each sends its next request when it has the answer.  The ways take
turns; the table has the medians of the rounds.

    pip install fastapi uvicorn
    python3 benchmarks/web_service.py [--rounds 5] [--requests 2000] [--connections 50]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conveyor import Pipe, Pipeline, Processor

WAYS = ("pipeline", "executor")
JOB_SECONDS = 0.001


def spin(item: int) -> int:
    """Use a core for a millisecond."""
    until = time.perf_counter() + JOB_SECONDS
    while time.perf_counter() < until:
        pass
    return item + 1


def both(item: int) -> int:
    """Return what the two steps of the pipeline do."""
    return spin(spin(item))


def application(way: str) -> Any:
    """Return the application."""
    from fastapi import FastAPI

    cores = os.cpu_count() or 1
    pipeline = Pipeline().add(Processor(spin, workers=cores, name="first")).add(Pipe())
    whole = pipeline.add(Processor(spin, workers=cores, name="second"))
    pools: list[ProcessPoolExecutor] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        if way == "pipeline":
            async with whole:
                yield
        else:
            with ProcessPoolExecutor(cores) as pool:
                pools.append(pool)
                yield

    async def by_pipeline(item: int) -> int:
        (result,) = await whole.asubmit(item)
        return result

    async def by_executor(item: int) -> int:
        return await asyncio.get_running_loop().run_in_executor(pools[0], both, item)

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/{item}", by_pipeline if way == "pipeline" else by_executor)
    return app


def served(way: str) -> Any:
    """Serve, in a process of its own, until SIGINT."""
    import uvicorn

    uvicorn.run(application(way), port=0, access_log=False)


class Measured(NamedTuple):
    """What the clients of one round saw."""

    throughput: float
    median: float
    p99: float


class Client:
    """One connection.  Client libraries take longer than the service, which would then be measured idle."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def get(self, item: int) -> int:
        """Return the answer to an item."""
        self._writer.write(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % item)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(await self._reader.readexactly(length))

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()


async def measured(port: int, requests: int, connections: int) -> Measured:
    """Return what so many requests take."""
    seconds: list[float] = []
    items = iter(range(requests))

    async def ask(client: Client) -> None:
        for item in items:
            begun = time.perf_counter()
            answer = await client.get(item)
            seconds.append(time.perf_counter() - begun)
            assert answer == item + 2, answer

    clients = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(connections)]
    await asyncio.gather(*(client.get(0) for client in clients))
    begun = time.perf_counter()
    await asyncio.gather(*map(ask, clients))
    whole = time.perf_counter() - begun
    await asyncio.gather(*(client.close() for client in clients))
    seconds.sort()
    return Measured(requests / whole, statistics.median(seconds), seconds[int(0.99 * (len(seconds) - 1))])


def one_round(way: str, requests: int, connections: int) -> Measured:
    """Start a service, ask it, and end it."""
    server = subprocess.Popen([sys.executable, __file__, "--serve", way], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                return asyncio.run(measured(int(found[1]), requests, connections))
        raise SystemExit(f"the service of {way} did not start")
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate()


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        served(arguments.serve)
        return
    print(f"Python {'.'.join(map(str, sys.version_info[:3]))}, {os.cpu_count()} cores")
    rounds: dict[str, list[Measured]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            rounds[way].append(one_round(way, arguments.requests, arguments.connections))
    for way, found in rounds.items():
        throughput, median, p99 = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{way:9}  {throughput:7.0f} requests/s   p50 {median * 1e3:6.1f} ms   p99 {p99 * 1e3:6.1f} ms")


if __name__ == "__main__":
    main()
