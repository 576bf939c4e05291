"""The service of `examples/service.py`: with a client in this process, and under uvicorn.

Law: skipped where FastAPI is missing; `.ci/run` has it in an environment of its own.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import re
import signal
import subprocess
import sys
import unittest
import warnings
from typing import Any

from tests.helpers.support import ROOT, TestCase, nothing_left

MISSING = [name for name in ("fastapi", "uvicorn", "httpx") if importlib.util.find_spec(name) is None]
CONNECTIONS = 50
REQUESTS = 10


@unittest.skipIf(MISSING, f"not installed: {', '.join(MISSING)}")
class Service(TestCase):
    """What it answers."""

    def setUp(self) -> None:
        sys.path.insert(0, str(ROOT / "examples"))
        self.addCleanup(sys.path.remove, str(ROOT / "examples"))

    def test_an_item_that_fails_is_answered_with_422_and_others_with_200(self) -> None:
        with warnings.catch_warnings():
            # What these packages warn of at their import is theirs.
            warnings.simplefilter("ignore")
            import service
            from fastapi.testclient import TestClient

            client = TestClient(service.app)
        with nothing_left(within=5.0), client:
            for _ in range(3):
                answer = client.post("/names", json={"source": "a = b + b"})
                assert (answer.status_code, answer.json()) == (200, {"b": 2, "a": 1})
                answer = client.post("/names", json={"source": "a = ="})
                assert answer.status_code == 422
                assert answer.json()["step"] == "names_in" and "SyntaxError" in answer.json()["error"]
            # What FastAPI itself refuses.
            assert client.post("/names", json={}).status_code == 422
            stats = client.get("/stats").json()
            assert [step["processor"] for step in stats["steps"]] == ["names_in", "most_used"]
            assert stats["start_method"] == "fork", stats["start_reason"]

    def test_under_uvicorn_no_request_fails_where_a_worker_is_killed(self) -> None:
        with nothing_left(within=5.0):
            command = [sys.executable, "-W", "always", "-m", "uvicorn", "--app-dir", str(ROOT / "examples")]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            server = subprocess.Popen(
                [*command, "--port", "0", "--no-access-log", "service:app"],
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            self.addCleanup(server.kill)
            assert server.stderr is not None
            lines: list[str] = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"running on (http://[\d.:]+)", line):
                    break
            else:
                self.fail("".join(lines))
            statuses, killed = asyncio.run(self.load(found[1]))
            server.send_signal(signal.SIGINT)
            rest = server.communicate()[1]
        assert killed and statuses == [200] * (CONNECTIONS * REQUESTS), set(statuses)
        text = "".join(lines) + rest
        # A worker that is lost is told of, and nothing else.
        assert "StartMethodWarning" not in text and "Traceback" not in text, text
        assert server.returncode in (0, -signal.SIGINT), text

    async def load(self, address: str) -> tuple[list[int], list[int]]:
        """The statuses of all requests, and the workers that were killed meanwhile."""
        import httpx

        statuses: list[int] = []
        killed: list[int] = []
        new_client = functools.partial(httpx.AsyncClient, timeout=60.0, trust_env=False, verify=False)

        async def ask() -> None:
            # One client with many connections takes long to find a free one.
            async with new_client() as client:
                for number in range(REQUESTS):
                    source = f"total = {' + '.join(['number'] * (number + 1))}"
                    answer = await client.post(f"{address}/names", json={"source": source})
                    statuses.append(answer.status_code)
                    if answer.status_code == 200:
                        assert answer.json()["number"] == number + 1

        async def kill(client: Any) -> None:
            for so_far in (0.2, 0.5):
                while len(statuses) < so_far * CONNECTIONS * REQUESTS:
                    await asyncio.sleep(0.001)
                stats = (await client.get(f"{address}/stats")).json()
                workers = [each["pid"] for step in stats["steps"] for each in step["worker_stats"]]
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])

        async with new_client() as client:
            await asyncio.gather(kill(client), *(ask() for _ in range(CONNECTIONS)))
        return statuses, killed
