"""Fetch pages, many at once in one worker process, and count their words in another.

    python3 examples/fetch.py [number of pages] [async, threads or processes]

A small server in this program gives the pages, and each takes it 60 ms.  One worker waits for a hundred of them in an
event loop, for 32 in threads, or 32 workers wait for one each.  Change first: `fetch` or `read`, to get what you need.
`benchmarks/waiting.py` measures all three.

It prints how many pages there were, and their words:

    300 pages, 44,850 words
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conveyor import Pipe, Pipeline, Processor


async def fetch(page: tuple[int, int]) -> bytes:
    port, number = page
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /{number} HTTP/1.0\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise OSError(f"page {number}: {head[:80]!r}")
    return body


def read(page: tuple[int, int]) -> bytes:
    with urllib.request.urlopen("http://127.0.0.1:{}/{}".format(*page)) as reply:
        return bytes(reply.read())


def count_words(body: bytes) -> int:
    return len(body.split())


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        time.sleep(0.06)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"word " * int(self.path.strip("/")))

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def main(pages: int, way: str = "async") -> None:
    fetching = {
        "async": Processor(fetch, concurrency=100, timeout=30, retries=2),
        "threads": Processor(read, threads=32, timeout=30, retries=2),
        "processes": Processor(read, workers=32, timeout=30, retries=2),
    }[way]
    # The workers are started first: to fork a process with threads is no good idea.
    with Pipeline().add(fetching).add(Pipe()).add(Processor(count_words)) as pipeline:
        ThreadingHTTPServer.request_queue_size = 128
        with ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            words = pipeline.run((server.server_port, number) for number in range(pages))
            server.shutdown()
    print(f"{len(words)} pages, {sum(words):,} words")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 300, *sys.argv[2:])
