"""The page of a pipeline: who gets an answer, what it says, and that a run never notices."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import os
import re
import socket
import threading
import unittest
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork, StateError
from conveyor.engines.process.caller.fork_gate import gate
from conveyor.serving import requests, server
from conveyor.serving.address import port_of_environment
from conveyor.serving.page import Page
from tests.helpers.browser import Tab, needs_browser
from tests.helpers.late import mock
from tests.helpers.scripts import Script, ScriptTestCase
from tests.helpers.support import TestCase
from tests.views.test_report import HOSTILE, read

PAGE_THREADS = ("conveyor-page", "conveyor-page-client")


def even(item: Any) -> Any:
    if item == 3 or (isinstance(item, str) and not item.startswith("/")):
        raise ValueError(f"{item} is odd")
    return item


def double(item: int) -> int:
    return item * 2


def waits(path: str) -> str:
    while not os.path.exists(path):
        threading.Event().wait(0.005)
    return path


def last_waits(item: Any) -> str:
    return waits(item) if isinstance(item, str) else ""


def chain(engine: Any = "inline", **settings: Any) -> Pipeline[Any, Any]:
    pipeline = Pipeline(engine=engine, **settings).add(Processor(even, on_error="skip")).add(Pipe())
    return pipeline.add(Processor(double, name=HOSTILE))


class Answer:
    """What a server has said."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()


def holds(text: str, part: str) -> None:
    """Fail, without the whole page in the message."""
    assert part in text, part


def lacks(text: str, pattern: str) -> None:
    found = re.search(pattern, text)
    assert found is None, found


def page_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in PAGE_THREADS]


def ask(url: str, path: str = "/", method: str = "GET", token: str | None = None, **headers: str) -> Answer:
    """Ask a page; without `token`, with that of the address."""
    place = urlsplit(url)
    known = parse_qs(place.query)["token"][0] if token is None else token
    connection = http.client.HTTPConnection("127.0.0.1", place.port or 0, timeout=30)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, f"{path}?token={known}" if known else path, headers=named)
        return Answer(connection.getresponse())


class Events:
    """A stream of events, read one by one."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self.connection = http.client.HTTPConnection("127.0.0.1", place.port or 0, timeout=30)
        self.connection.request("GET", f"/events?{place.query}")
        self.response = self.connection.getresponse()
        self.status, self.kind = self.response.status, self.response.headers["Content-Type"]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        name = "message"
        for line in self.response:
            if line.startswith(b"event: "):
                name = line[7:].decode().strip()
            elif line.startswith(b"data: "):
                yield name, json.loads(line[6:])
                name = "message"

    def close(self) -> None:
        self.response.close()
        self.connection.close()


class RequestTest(TestCase):
    """Who gets an answer."""

    def setUp(self) -> None:
        super().setUp()
        self.leave_nothing()
        self.pipeline = chain()
        self.url = self.enterContext_(self.pipeline.serve())

    def enterContext_(self, context: Any) -> Any:
        entered = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return entered

    def test_the_address(self) -> None:
        self.assertRegex(self.url, r"\Ahttp://127\.0\.0\.1:[1-9]\d*/\?token=[\w-]{32}\Z")
        with chain().serve() as other:
            self.assertNotEqual(urlsplit(self.url).query, urlsplit(other).query)

    def test_a_token_that_is_wrong_or_missing(self) -> None:
        for path in ("/", "/events", "/stats.json", "/metrics", "/report", "/trace", "/nothing"):
            for token in ("", "wrong", "é"):
                answer = ask(self.url, path, token=token and "wr%C3%A9")
                self.assertEqual((answer.status, "token" in answer.text), (403, True), path)
        self.assertEqual(ask(self.url).status, 200)

    def test_a_token_in_a_header(self) -> None:
        token = parse_qs(urlsplit(self.url).query)["token"][0]
        self.assertEqual(ask(self.url, token="", Authorization=f"Bearer {token}").status, 200)
        self.assertEqual(ask(self.url, token="", Authorization="Bearer no").status, 403)
        self.assertEqual(ask(self.url, token="", Authorization=f"Basic {token}").status, 403)

    def test_a_token_that_the_environment_fixes(self) -> None:
        with mock.patch.dict(os.environ, {"CONVEYOR_TOKEN": "open & sesame"}):
            with chain().serve() as url:
                self.assertEqual(urlsplit(url).query, "token=open%20%26%20sesame")
                self.assertEqual(ask(url, token="open%20%26%20sesame").status, 200)
                self.assertIn("?token=open%20%26%20sesame", ask(url, token="open%20%26%20sesame").text)
                self.assertEqual(ask(url, token="open").status, 403)

    def test_the_host(self) -> None:
        port = urlsplit(self.url).port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost", "LOCALHOST:99"):
            self.assertEqual(ask(self.url, Host=host).status, 200, host)
        for host in (
            f"evil.example:{port}",
            "evil.example",
            f"127.0.0.1.evil.example:{port}",
            "",
            "127.0.0.2",
            "[::1]:8",
        ):
            answer = ask(self.url, Host=host)
            self.assertEqual((answer.status, "Host" in answer.text), (403, True), host)

    def test_the_origin(self) -> None:
        port = urlsplit(self.url).port
        self.assertEqual(ask(self.url, Origin=f"http://127.0.0.1:{port}").status, 200)
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"https://127.0.0.1:{port}"):
            self.assertEqual(ask(self.url, Origin=origin).status, 403, origin)

    def test_methods(self) -> None:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"):
            answer = ask(self.url, method=method)
            self.assertEqual((answer.status, answer.headers["Allow"]), (405, "GET, HEAD"), method)
        self.assertEqual(ask(self.url, method="POST", token="wrong").status, 403)

    def test_head_has_the_headers_alone(self) -> None:
        self.pipeline.run([1])
        for path in ("/", "/events", "/stats.json", "/metrics", "/report"):
            told, head = ask(self.url, path) if path != "/events" else None, ask(self.url, path, "HEAD")
            self.assertEqual((head.status, head.text), (200, ""), path)
            if told is not None:
                self.assertEqual(told.headers["Content-Type"], head.headers["Content-Type"])
                self.assertEqual(told.headers["Content-Length"], f"{len(told.text.encode())}")

    def test_an_unknown_path(self) -> None:
        for path in ("/nothing", "/stats", "/../etc/passwd", "/%2e%2e/x"):
            answer = ask(self.url, path)
            self.assertEqual((answer.status, "/stats.json" in answer.text), (404, True), path)

    def test_nothing_may_be_kept_or_framed(self) -> None:
        for path, status in (("/", 200), ("/nothing", 404)):
            answer = ask(self.url, path)
            self.assertEqual(answer.status, status)
            self.assertEqual(answer.headers["Cache-Control"], "no-store")
            self.assertEqual(answer.headers["X-Content-Type-Options"], "nosniff")
            self.assertEqual(answer.headers["Referrer-Policy"], "no-referrer")
        self.assertIn("frame-ancestors 'none'", ask(self.url).headers["Content-Security-Policy"])

    def test_what_is_no_request(self) -> None:
        port = urlsplit(self.url).port or 0
        for sent in (b"nonsense\r\n\r\n", b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"x" * 70_000, b""):
            with socket.create_connection(("127.0.0.1", port), 30) as client:
                with contextlib.suppress(OSError):
                    client.sendall(sent)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(65536):
                        pass
        self.assertEqual(ask(self.url).status, 200)

    def test_too_many_connections(self) -> None:
        with mock.patch.object(server, "MOST_CONNECTIONS", 2), contextlib.ExitStack() as stack:
            port = urlsplit(self.url).port or 0
            for _ in range(2):
                stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", port), 30)))
            with contextlib.suppress(ConnectionError):
                self.assertEqual(ask(self.url).status, 503)
        self.wait_until(lambda: ask(self.url).status == 200)

    def wait_until(self, condition: Any) -> None:
        while not condition():
            threading.Event().wait(0.01)


class AnswersTest(TestCase):
    """What a page says."""

    def setUp(self) -> None:
        super().setUp()
        self.leave_nothing()

    def test_the_first_html_holds_names_and_numbers(self) -> None:
        pipeline = chain()
        with pipeline.serve() as url:
            before = ask(url)
            holds(before.text, "Not started yet")
            holds(before.text, "even")
            pipeline.run([1, 2, 3, HOSTILE])
            text = ask(url).text
        for page in (before.text, text):
            tree = read(page)
            self.assertEqual(tree.seen.count("script"), 1)
            lacks(page, "https?:|//[a-z]|@import|src=")
        holds(text, "Done: 4 of 4 items (100 %)")
        holds(text, "3 is odd")
        holds(text, "4 items")
        for tag in ("header", "main", "nav", "footer"):
            self.assertEqual(tree.seen.count(tag), 1, tag)
        holds(text, 'aria-live="polite"')
        holds(text, '<th scope="col"')
        holds(text, '<th scope="row"')

    def test_numbers_and_report(self) -> None:
        pipeline = chain()
        with pipeline.serve() as url:
            for path in ("/stats.json", "/report"):
                self.assertEqual(ask(url, path).status, 503)
            self.assertEqual(ask(url, "/metrics").status, 200)
            pipeline.run([1, 2, 3])
            told = ask(url, "/stats.json")
            self.assertEqual(told.headers["Content-Type"], "application/json")
            self.assertEqual(json.loads(told.text), json.loads(json.dumps(pipeline.stats().to_dict())))
            report = ask(url, "/report")
            self.assertEqual(report.headers["Content-Type"], "text/html; charset=utf-8")
            holds(report.text, "Report of a pipeline")
            metrics = ask(url, "/metrics")
            self.assertEqual(metrics.headers["Content-Type"], "text/plain; version=0.0.4; charset=utf-8")
            holds(metrics.text, 'conveyor_items_in_total{processor="even"} 3')

    def test_items_are_shown_as_redact_shows_them(self) -> None:
        pipeline = Pipeline(engine="inline", redact=lambda item: "an order").add(Processor(even, on_error="skip"))
        with pipeline.serve() as url:
            pipeline.run(["card 4111"])
            events = Events(url)
            shown = [ask(url, path).text for path in ("/", "/report", "/stats.json")] + [str(next(iter(events)))]
            events.close()
        holds(shown[0], "an order")
        for text in shown:
            # The job itself has put it into the message of its exception, which nobody redacts.
            self.assertNotIn("card 4111", text.replace("card 4111 is odd", ""))

    def test_the_trace(self) -> None:
        folder = self.new_folder()
        with chain().serve() as url:
            answer = ask(url, "/trace")
            self.assertEqual((answer.status, "trace=" in answer.text), (404, True))
        for engine, name in (("process", "run.json.gz"), ("thread", "run.json")):
            pipeline = chain(engine, trace=os.path.join(folder, name))
            with pipeline.serve() as url:
                self.assertEqual(ask(url, "/trace").status, 503)
                with pipeline:
                    pipeline.run(range(100))
                    told = json.loads(ask(url, "/trace").text)
                    done = sum(each["args"]["items"] for each in told["traceEvents"] if each["ph"] == "X")
                    self.assertEqual(done, 199, engine)
                    with pipeline.stream(range(10)) as stream:
                        next(stream)
            with pipeline.serve() as url:
                self.assertEqual(json.loads(ask(url, "/trace").text)["otherData"]["source"], "Conveyor")
                self.assertEqual(ask(url, "/trace", "HEAD").text, "")

    def test_an_error_in_it_is_told_once_and_harms_nothing(self) -> None:
        pipeline = chain("process")
        with pipeline.serve() as url, mock.patch.object(Page, "_look", side_effect=ZeroDivisionError("no")):
            with self.assertLogs("conveyor") as logs:
                self.assertEqual([ask(url, path).status for path in ("/", "/metrics")], [500, 500])
                events = Events(url)
                self.assertEqual(list(events), [])
                events.close()
                self.assertEqual(pipeline.run([1, 2]), [2, 4])
        self.assertEqual(len(logs.output), 1, logs.output)
        self.assertIn("ZeroDivisionError('no')", logs.output[0])

    def test_where_a_handler_of_logs_raises_as_well(self) -> None:
        import logging

        class Bad(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                raise OSError("the disk is full")

        handler, pipeline = Bad(), chain("thread")
        logging.getLogger("conveyor").addHandler(handler)
        self.addCleanup(logging.getLogger("conveyor").removeHandler, handler)
        with pipeline.serve() as url, mock.patch.object(Page, "_look", side_effect=ZeroDivisionError("no")):
            self.assertEqual(ask(url).status, 500)
            self.assertEqual(pipeline.run([1, 2]), [2, 4])


class EventsTest(TestCase):
    """Numbers that come by themselves."""

    def setUp(self) -> None:
        super().setUp()
        self.leave_nothing()
        patch = mock.patch.multiple(requests, EVENT_SECONDS=0.05)
        patch.start()
        self.addCleanup(patch.stop)

    def test_numbers_move(self) -> None:
        path = os.path.join(self.new_folder(), "go")
        pipeline: Pipeline[Any, Any] = Pipeline(start_method="fork").add(Processor(waits))
        with pipeline.serve() as url:
            stream = pipeline.stream([os.devnull, path, os.devnull])
            events = Events(url)
            self.assertEqual((events.status, events.kind), (200, "text/event-stream"))
            told = iter(events)
            first = next(told)[1]
            self.assertEqual(first["state"], "Running")
            self.assertEqual(set(first["parts"]), set(re.findall(r'id="(\w+)"', ask(url).text)) - {"lost", "spoken"})
            while "1 of 3 items" not in next(told)[1]["said"]:
                pass
            with open(path, "w"):
                pass
            self.assertEqual(len(list(stream)), 3)
            while (last := next(told)[1])["said"][:18] != "Done: 3 of 3 items":
                pass
            self.assertIn("headline", last["parts"])
        # It ends with the page.
        self.assertEqual([name for name, _ in told][-1:], ["end"])
        events.close()

    def test_a_pipeline_that_is_closed_ends_them(self) -> None:
        for engine in ("process", "thread", "inline"):
            with self.subTest(engine):
                pipeline = chain(engine)
                with pipeline.serve() as url:
                    with pipeline:
                        pipeline.run([1, 2])
                        events = Events(url)
                        told = iter(events)
                        next(told)
                        self.assertEqual(sorted(set(page_threads())), sorted(PAGE_THREADS))
                    self.assertEqual(page_threads(), [])
                    name, last = list(told)[-1]
                    self.assertEqual((name, last["state"]), ("end", "Done"))
                    with self.assertRaises(ConnectionError):
                        ask(url)
                events.close()

    def test_clients_are_bounded_and_one_that_goes_away_is_noticed(self) -> None:
        with chain().serve() as url:
            streams = [Events(url) for _ in range(requests.MOST_STREAMS)]
            for each in streams:
                next(iter(each))
            refused = Events(url)
            self.assertEqual(refused.status, 503)
            refused.close()
            streams.pop().close()
            while (other := Events(url)).status == 503:
                other.close()
            self.assertEqual(ask(url).status, 200)
            for each in (*streams, other):
                each.close()
            while page_threads() != ["conveyor-page"]:
                threading.Event().wait(0.01)

    def test_two_pipelines(self) -> None:
        one, other = chain("process"), chain("process", start_method="forkserver")
        with one.serve() as url, other.serve() as other_url, one:
            one.run([1])
            events = Events(url)
            told = iter(events)
            next(told)
            # This forks, or starts a process: the stream of the first ends for that.
            with other:
                other.run([1, 2])
                holds(ask(other_url).text, "2 items")
                holds(ask(url).text, ">1 item, ")
                self.assertEqual(ask(url, token=parse_qs(urlsplit(other_url).query)["token"][0]).status, 403)
            self.assertNotIn("end", [name for name, _ in told])
            events.close()
            self.assertEqual(ask(url).status, 200)


class LifeTest(TestCase):
    """When there is a page, and that nothing of it is left."""

    def setUp(self) -> None:
        super().setUp()
        self.leave_nothing()

    def test_no_thread_lives_while_a_process_forks(self) -> None:
        with chain("process").serve() as url:
            self.assertEqual(page_threads(), ["conveyor-page"])
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), 30), gate.closed():
                self.assertEqual(page_threads(), [])
            self.assertEqual(ask(url).status, 200)

    def test_a_forked_process_has_no_socket_of_it(self) -> None:
        pipeline = chain("process", start_method="fork")
        with pipeline:
            context = pipeline.serve()
            with pipeline.serve() as url:
                pipeline.run([1])
            with context as url:
                pass
        # The broker and its workers were forked while there was a page.
        context = pipeline.serve()
        url = context.__enter__()
        stream = pipeline.stream(iter([1, 2]))
        self.assertEqual(next(stream), 2)
        context.__exit__(None, None, None)
        with self.assertRaises(ConnectionError):
            ask(url)
        stream.close()

    @unittest.skipUnless(hasattr(os, "fork"), "there is no fork")
    def test_a_fork_of_the_program(self) -> None:
        import warnings

        pipeline = chain()
        with pipeline.serve() as url:
            with warnings.catch_warnings():
                # Python says so of each fork beside a thread.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                held = [each for each in server._servers for each in (each.socket, each._waker)]
                os._exit(0 if held and all(each.fileno() == -1 for each in held) else 1)
            self.assertEqual(os.waitpid(child, 0)[1], 0)
            self.assertEqual(ask(url).status, 200)

    def test_a_port_that_is_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            pipeline = chain("process")
            with self.assertWarnsRegex(RuntimeWarning, f"serve: port {port} cannot be used .* is at port") as warned:
                with pipeline.serve(port) as url:
                    self.assertNotEqual(urlsplit(url).port, port)
                    self.assertEqual(pipeline.run([1]), [2])
                    self.assertEqual(ask(url).status, 200)
            self.assertEqual(warned.filename, __file__)

    def test_a_port_of_ones_own_again_and_again(self) -> None:
        with chain().serve() as url:
            port = urlsplit(url).port or 0
            ask(url)
        for _ in range(2):
            with chain().serve(port) as url:
                self.assertEqual(urlsplit(url).port, port)
                ask(url)

    def test_what_is_no_port(self) -> None:
        for port in (-1, 65536):
            with self.assertRaisesRegex(ValueError, f"serve: port must be from 0.*, not {port}"):
                chain().serve(port)
        for what in (True, "80", None, 8.0):
            with self.assertRaisesRegex(TypeError, "serve: port must be an int"):
                chain().serve(what)  # type: ignore[arg-type]

    def test_one_page_at_a_time(self) -> None:
        pipeline = chain()
        with pipeline.serve():
            with self.assertRaisesRegex(StateError, "is served already"), pipeline.serve():
                pass
        with pipeline.serve() as url:
            self.assertEqual(ask(url).status, 200)

    def test_a_pipeline_that_is_dropped(self) -> None:
        pipeline: Any = chain()
        url = pipeline.serve().__enter__()
        self.assertEqual(ask(url).status, 200)
        del pipeline
        gc.collect()
        with self.assertRaises(ConnectionError):
            ask(url)
        with chain().serve() as url:
            gc.collect()
            self.assertEqual(ask(url).status, 200)

    def test_a_run_that_fails(self) -> None:
        pipeline: Pipeline[Any, Any] = Pipeline().add(Processor(even))
        with pipeline.serve() as url:
            with self.assertRaisesRegex(Exception, "3 is odd"):
                pipeline.run([3])
            holds(ask(url).text, "Ended")
            self.assertEqual(pipeline.run([2]), [2])
            holds(ask(url).text, "Done")

    def test_a_pipeline_with_branches(self) -> None:
        pipeline = Pipeline(start_method="fork").add(Processor(double, workers=2)).add(Pipe(5)).add(ReplicatingFork(2))
        pipeline.add(Processor(str), Processor(double, name="twice")).add(Pipe()).add(Join(2, how="zip"))
        with pipeline.serve() as url, pipeline:
            pipeline.run(range(100))
            text = ask(url).text
            for each in ("taken by double", "given by 2 steps", "worker 0", "Join"):
                holds(text, each)
            read(text)

    def test_submitted_items(self) -> None:
        pipeline = chain("process")
        with pipeline.serve() as url, pipeline:
            self.assertEqual(pipeline.submit(4).result(), [8])
            holds(ask(url).text, ">1 item, ")


class EnvironmentTest(ScriptTestCase):
    """A page of a script that knows nothing of it."""

    def test_addresses(self) -> None:
        self.assertEqual([port_of_environment(each) for each in ("127.0.0.1:0", "localhost:8642")], [0, 8642])
        for wanted, why in (
            ("8642", "must be an address with a port"),
            ("127.0.0.1", "must be an address with a port"),
            ("127.0.0.1:70000", "must be an address with a port"),
            ("0.0.0.0:8642", "another address than 127.0.0.1.*ssh -L"),
            ("example.org:80", "another address"),
        ):
            with self.assertRaisesRegex(ValueError, f"CONVEYOR_SERVE='{re.escape(wanted)}' .*{why}"):
                port_of_environment(wanted)

    def test_what_is_no_address_is_told_before_anything_starts(self) -> None:
        with mock.patch.dict(os.environ, {"CONVEYOR_SERVE": "0.0.0.0:80"}):
            with self.assertRaisesRegex(ValueError, "another address"):
                chain("process").run([1])
            with self.assertRaisesRegex(ValueError, "another address"), chain("process"):
                pass

    def test_it_is_there_for_each_session_and_no_longer(self) -> None:
        self.leave_nothing()
        pipeline, seen = chain("thread"), []
        with mock.patch.dict(os.environ, {"CONVEYOR_SERVE": "127.0.0.1:0"}):
            with mock.patch("conveyor.serving.page._print") as printed:
                pipeline.run(each for each in [1] if seen.append(page_threads()) is None)  # type: ignore[func-returns-value]
                self.assertEqual((seen, page_threads()), ([["conveyor-page"]], []))
                with pipeline:
                    pipeline.run([1])
                    self.assertEqual(page_threads(), ["conveyor-page"])
                self.assertEqual(page_threads(), [])
                with self.assertRaises(ZeroDivisionError), pipeline:
                    raise ZeroDivisionError
                self.assertEqual(page_threads(), [])
                with pipeline, pipeline.serve() as url:
                    self.assertEqual(ask(url).status, 200)
        urls = [call.args[0].rpartition(" ")[2] for call in printed.call_args_list]
        self.assertEqual((len(urls), len({urlsplit(each).query for each in urls})), (4, 1))

    def test_a_script_and_not_its_workers(self) -> None:
        body = (
            "import os, sys\n"
            "from conveyor import Pipeline, Processor\n"
            "def nested(item):\n"
            "    return Pipeline(engine='inline').add(Processor(abs)).run([item])[0], os.environ.get('CONVEYOR_SERVE')\n"
            "def asks(items):\n"
            "    for item in items:\n"
            "        import urllib.request\n"
            "        sys.stderr.flush()\n"
            "        yield item\n"
            "if __name__ == '__main__':\n"
            "    print(Pipeline().add(Processor(nested)).run(asks([-1, 2])))\n"
        )
        for method in [each for each in self.methods() if each != "forkserver"]:
            with self.subTest(method), mock.patch.dict(os.environ, {"CONVEYOR_SERVE": "127.0.0.1:0"}):
                text = body.replace("Pipeline()", f"Pipeline(start_method={method!r})")
                script = self.start_script(Script(text), self.folder)
                output, errors = script.communicate()
                self.assertEqual((script.returncode, output), (0, "[(1, None), (2, None)]\n"), errors)
                self.assertRegex(
                    errors, r"\Aconveyor: the pipeline can be looked at: http://127\.0\.0\.1:\d+/\?token=\S+\n\Z"
                )

    def test_a_run_that_nobody_serves_imports_nothing_of_it(self) -> None:
        body = (
            "import sys\n"
            "from conveyor import Pipeline, Processor\n"
            "if __name__ == '__main__':\n"
            "    Pipeline().add(Processor(abs)).run(range(3))\n"
            "    print([name for name in sys.modules if 'conveyor.serving.' in name or 'http.server' in name])\n"
        )
        script = self.start_script(Script(body), self.folder)
        self.assertEqual(script.communicate(), ("[]\n", ""))


@needs_browser
class BrowserTest(TestCase):
    """What a real browser makes of it."""

    time_limit = 180.0

    def test_numbers_move_and_nothing_is_wrong(self) -> None:
        path = os.path.join(self.new_folder(), "go")
        pipeline: Pipeline[Any, Any] = Pipeline(start_method="fork").add(Processor(even, on_error="skip")).add(Pipe())
        pipeline.add(Processor(last_waits))
        # Nobody forks while the browser is started: a child would hold what tells that it has started.
        with pipeline.serve() as url, pipeline:
            # Failures arrive with the results, so somebody has to take these.
            results: list[Any] = []
            taking = threading.Thread(target=lambda: results.extend(pipeline.run([2, 3, path])))
            taking.start()
            self.addCleanup(taking.join)
            with Tab(url, 390, 844, dark=True) as tab:
                tab.wait_for("document.getElementById('headline').textContent.includes('2 of 3 items')")
                tab.wait_for("document.getElementById('failures').textContent.includes('3 is odd')")
                self.assertEqual(tab.value("getComputedStyle(document.body).backgroundColor"), "rgb(13, 17, 23)")
                self.assertEqual(tab.value("document.querySelector('#done progress').value"), 2)
                # What a reader has opened stays open.
                tab.value("document.querySelector('#failures details').open = true")
                with open(path, "w"):
                    pass
                taking.join()
                self.assertEqual(len(results), 2)
                tab.wait_for(
                    "document.getElementById('headline').textContent.startsWith('Done, and open for more: 3 of 3 items (100 %)')"
                )
                self.assertTrue(tab.value("document.querySelector('#failures details').open"))
                self.assertIn("Done", tab.value("document.getElementById('spoken').textContent"))
                for width in (390, 320):
                    tab.resize(width, 844)
                    self.assertLessEqual(tab.value("document.documentElement.scrollWidth"), width)
                self.assertTrue(tab.value("document.getElementById('lost').hidden"))
                pipeline.close()
                tab.wait_for("document.getElementById('lost').textContent.includes('ended with the pipeline')")
                self.assertEqual(tab.console, [])

    def test_a_wide_pipeline_on_a_phone(self) -> None:
        pipeline: Pipeline[Any, Any] = (
            Pipeline(start_method="fork", cores=30).add(Processor(double, workers=20)).add(Pipe())
        )
        pipeline.add(ReplicatingFork(5)).add(*(Processor(double, name=f"a_branch_with_a_name_{n}") for n in range(5)))
        pipeline.add(Pipe()).add(Join(5)).add(Pipe()).add(Processor(abs, name=f"x{'very' * 40}_long_name"))
        with pipeline.serve() as url, pipeline:
            pipeline.run(range(50))
            with Tab(url, 390, 844) as tab:
                tab.wait_for("document.getElementById('spoken').textContent.includes('50 of 50 items')")
                self.assertEqual(tab.value("getComputedStyle(document.body).backgroundColor"), "rgb(255, 255, 255)")
                self.assertLessEqual(tab.value("document.documentElement.scrollWidth"), 390)
                self.assertEqual(tab.value("document.querySelectorAll('#workers li').length"), 26)
                self.assertEqual(tab.console, [])
