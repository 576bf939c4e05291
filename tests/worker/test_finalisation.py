"""What a worker owns is finalised when it ends by itself; what the program owned when it was forked is not.

Law: each test is a script, run with every start method that gives its jobs what they use.  It looks at files, after the
run, and finds all that was written, once.
"""

from __future__ import annotations

import textwrap
import unittest

from tests.helpers.scripts import Script, ScriptTestCase

BEGIN = """
import atexit, bz2, csv, gzip, io, lzma, os, pickle, sys, tempfile, threading, weakref, zipfile
from concurrent.futures import ThreadPoolExecutor
from conveyor import Pipeline, Processor
def path():
    return f"worker-{os.getpid()}"
def rows(read=lambda name: open(name).read()):
    return sorted(int(row) for name in os.listdir() if name.startswith("worker-") for row in read(name).split())
def check(job, read=lambda name: open(name).read(), items=1000, **settings):
    pipeline = Pipeline(start_method=sys.argv[1], **settings).add(job)
    assert sorted(pipeline.run(range(items))) == list(range(items))
    found = rows(read)
    print(len(found), found == list(range(items)))
"""

ALL_ROWS = "1000 True"


# Files that nobody closes are what it is about.
OPTIONS = ("-W", "error", "-W", "ignore::ResourceWarning")


class WhatAWorkerOwnsTest(ScriptTestCase):
    """Is complete, although there is no `teardown`."""

    options = OPTIONS

    def methods(self) -> tuple[str, ...]:
        """Without the fork server: its workers are forked, and end as those of the caller do."""
        return tuple(method for method in super().methods() if method != "forkserver")

    def every_method(self, expected: str, body: str, methods: tuple[str, ...] = ()) -> None:
        """Run a script that begins with what all have in common."""
        body = BEGIN + textwrap.dedent(body)
        self.all_print(expected, [Script(body, (method,)) for method in methods or self.methods()])

    def kept_on_self(self, setup: str, process: str, read: str = "", settings: str = "") -> None:
        """A subclass of which these are the methods."""
        self.every_method(ALL_ROWS, self.writing(setup, process, read, settings))

    def writing(self, setup: str, process: str, read: str, settings: str) -> str:
        """Its script."""
        return f"""
            class Write(Processor):
                workers = 2
                {settings}
                def setup(self):
                    {setup}
                def process(self, item):
                    {process}
                    return item
            if __name__ == "__main__":
                check(Write(), {read})
            """

    def test_a_file(self) -> None:
        body = self.writing("self.file = open(path(), 'w')", "self.file.write(f'{item} ')", "", "")
        self.every_method(ALL_ROWS, body, super().methods())

    def test_a_file_in_a_slot_of_its_own(self) -> None:
        body = self.writing("self.file = open(path(), 'w')", "self.file.write(f'{item} ')", "", "__slots__ = ('file',)")
        self.every_method(ALL_ROWS, body, ("fork",))

    def test_what_is_written_by_csv_into_a_file_that_nothing_else_has(self) -> None:
        self.kept_on_self("self.out = csv.writer(open(path(), 'w'))", "self.out.writerow([item])")

    def test_compressed_files(self) -> None:
        bodies = [
            self.writing(
                f"self.file = {module}.open(path(), 'wt')",
                "self.file.write(f'{item} ')",
                f"lambda name: {module}.open(name, 'rt').read()",
                "",
            )
            for module in ("gzip", "bz2", "lzma")
        ]
        # They differ by module in what they do at their end, and by start method in whether they are asked to.
        ways = [(body, method) for body in bodies for method in self.methods() if body is bodies[0] or method == "fork"]
        self.all_print(ALL_ROWS, [Script(BEGIN + textwrap.dedent(body), (method,)) for body, method in ways])

    def test_an_archive(self) -> None:
        self.kept_on_self(
            "self.archive = zipfile.ZipFile(path(), 'w')",
            "self.archive.writestr(str(item), '')",
            "lambda name: ' '.join(zipfile.ZipFile(name).namelist())",
        )

    def test_what_is_in_a_cycle(self) -> None:
        self.kept_on_self(
            "self.file = open(path(), 'w'); self.all = [self]; self.all += [self.all]", "self.file.write(f'{item} ')"
        )

    def test_a_generator_with_a_file(self) -> None:
        self.every_method(
            ALL_ROWS,
            """
            def write():
                with open(path(), "w") as file:
                    while True:
                        file.write(f"{yield} ")
            class Write(Processor):
                def setup(self):
                    self.writer = write()
                    next(self.writer)
                def process(self, item):
                    self.writer.send(item)
                    return item
            if __name__ == "__main__":
                check(Write())
            """,
        )

    def test_finalizers(self) -> None:
        """A `__del__` that writes, and a `weakref.finalize`, each into a file that is still open then."""
        self.every_method(
            ALL_ROWS,
            """
            class Writer:
                def __init__(self):
                    self.file, self.rows = open(path(), "w"), []
                def __del__(self):
                    self.file.write(" ".join(map(str, self.rows)))
            class Write(Processor):
                def setup(self):
                    self.writer, self.rows, self.file = Writer(), [], open(path() + "-too", "w")
                    weakref.finalize(self.rows.append, lambda: None)
                    self.key = threading.Event()
                    weakref.finalize(self.key, last, self.file, self.rows)
                def process(self, item):
                    (self.writer.rows if item % 2 else self.rows).append(item)
                    return item
            def last(file, rows):
                file.write(" ".join(map(str, rows)))
            if __name__ == "__main__":
                check(Write())
            """,
        )

    def test_what_a_module_has(self) -> None:
        self.every_method(
            ALL_ROWS,
            """
            opened = []
            class Writer:
                def __init__(self):
                    self.file, self.rows = open(path(), "w"), []
                def __del__(self):
                    self.file.write(" ".join(map(str, self.rows)))
            def write(item):
                global plain
                if not opened:
                    opened.append(gzip.open(path() + ".gz", "wt"))
                    opened.append(Writer())
                    plain = open(path() + ".txt", "w")
                if item % 3 == 0:
                    opened[0].write(f"{item} ")
                elif item % 3 == 1:
                    opened[1].rows.append(item)
                else:
                    plain.write(f"{item} ")
                return item
            if __name__ == "__main__":
                check(Processor(write), lambda name: (gzip if name.endswith(".gz") else io).open(name, "rt").read())
            """,
        )

    def test_closures_and_objects_of_bound_methods(self) -> None:
        self.every_method(
            f"{ALL_ROWS}\n{ALL_ROWS}\n{ALL_ROWS}",
            """
            def closure():
                file = None
                def write(item):
                    nonlocal file
                    file = file or gzip.open(path(), "wt")
                    file.write(f"{item} ")
                    return item
                return write
            class Writer:
                file = None
                def write(self, item):
                    self.file = self.file or gzip.open(path(), "wt")
                    self.file.write(f"{item} ")
                    return item
            class Slotted(Writer):
                __slots__ = "file",
                def __init__(self):
                    self.file = None
            def read(name):
                text = gzip.open(name, "rt").read()
                os.remove(name)
                return text
            if __name__ == "__main__":
                check(Processor(closure()), read)
                check(Processor(Writer().write), read)
                check(Processor(Slotted().write), read)
            """,
            ("fork",),
        )

    def test_what_threads_of_the_job_still_write(self) -> None:
        self.kept_on_self(
            "self.file, self.pool = open(path(), 'w'), ThreadPoolExecutor(1); self.pool.submit(threading.Event().wait, 0.3)",
            "self.pool.submit(self.file.write, f'{item} ')",
        )

    def test_workers_that_are_replaced_or_leave(self) -> None:
        self.kept_on_self(
            "self.file = open(path(), 'w')", "self.file.write(f'{item} ')", "", "max_items, restartable = 250, True"
        )

    def test_queues(self) -> None:
        self.kept_on_self("self.file = open(path(), 'w')", "self.file.write(f'{item} ')", "channel='queue'")

    def test_a_run_that_fails(self) -> None:
        """The others end by themselves."""
        self.every_method(
            "10 True ValueError",
            """
            class Write(Processor):
                def setup(self):
                    self.file = open(path(), "w")
                def process(self, item):
                    self.file.write(f"{item} ")
                    if item == 9:
                        raise ValueError
                    return item
            if __name__ == "__main__":
                try:
                    Pipeline(start_method=sys.argv[1]).add(Write()).run(range(100))
                except Exception as error:
                    print(len(rows()), rows() == list(range(10)), type(error.__cause__).__name__)
            """,
        )

    def test_an_exception_in_a_finalizer_is_told_as_ever(self) -> None:
        body = """
            import sys
            from conveyor import Pipeline, Processor
            class Broken:
                def __del__(self):
                    raise ValueError("at the end")
            kept = []
            def job(item):
                kept.append(Broken())
                return item
            if __name__ == "__main__":
                print(Pipeline(start_method=sys.argv[1]).add(Processor(job)).run([1]))
        """
        for outcome in self.scripts([Script(body, (method,)) for method in self.methods()]):
            assert (outcome.code, outcome.output) == (0, "[1]"), outcome.told()
            assert outcome.errors.count("ValueError: at the end") == 1, outcome.told()


class NothingToFinaliseTest(ScriptTestCase):
    """A new interpreter that has nothing to finalise does not take itself apart."""

    def ends(self, made: str) -> str:
        """What is written by `os._exit`, by `atexit` and by what a job has made, of a worker that is spawned."""
        self.folder = self.new_folder()
        code, output, errors = self.script(
            f"""
            import atexit, os, sys
            from conveyor import Pipeline, Processor
            # The interpreter takes away global names, and ways to open files, before it drops what they refer to.
            ended = os.open("ended", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            def note(text, write=os.write, ended=ended):
                write(ended, text.encode() + b" ")
            class Deleted:
                def __del__(self, note=note):
                    note("deleted")
            def suspended(note=note):
                try:
                    yield
                finally:
                    note("closed")
            def first(generator):
                next(generator)
                return generator
            def end(code, leave=os._exit):
                note("left")
                leave(code)
            def job(item):
                os._exit = end
                atexit.register(note, "at-exit")
                kept.append({made})
                return item
            kept = []
            if __name__ == "__main__":
                Pipeline(start_method="spawn").add(Processor(job)).run([1])
                with open("ended") as file:
                    print(file.read())
            """
        )
        assert (code, errors) == (0, ""), errors
        return output

    def test_it_leaves_at_once(self) -> None:
        self.assertEqual(self.ends("[item]"), "at-exit left")

    def test_what_runs_when_it_is_dropped_does_run(self) -> None:
        self.assertEqual(self.ends("Deleted()"), "at-exit deleted")
        self.assertEqual(self.ends("first(suspended())"), "at-exit closed")

    def test_modules_whose_objects_may_have_something_to_do(self) -> None:
        self.assertEqual(self.ends("__import__('sqlite3')"), "at-exit")


class WhatTheProgramOwnsTest(ScriptTestCase):
    """Is not finalised by broker and workers, and written once."""

    options = OPTIONS

    def test_all_of_it(self) -> None:
        self.prints_by_every_method(
            "1 1 1 1 True",
            """
            import atexit, gc, os, sys, tempfile, threading, weakref
            from conveyor import Pipeline, Processor
            class Owned:
                def __init__(self, name):
                    self.name = name
                def __del__(self):
                    note(self.name)
            def note(name):
                with open(name, "a") as file:
                    file.write("x")
            class Job(Processor):
                def setup(self):
                    # It was the only one to refer to it.
                    self.folder = None
                    self.file = open(f"worker-{os.getpid()}", "w")
                def process(self, item):
                    self.file.write("x")
                    self.more = [self.owned]
                    return item
            if __name__ == "__main__":
                with open("written", "w") as file:
                    file.write("x")
                    job, folder = Job(), tempfile.TemporaryDirectory()
                    job.owned = Owned("deleted") if sys.argv[1] == "fork" else None
                    owned = Owned("deleted") if sys.argv[1] != "fork" else None
                    key = threading.Event()
                    weakref.finalize(key, note, "finalised")
                    job.folder = key if sys.argv[1] == "fork" else None
                    del key
                    atexit.register(note, "at-exit")
                    # Nothing but `atexit` refers to the object.
                    other = tempfile.TemporaryDirectory()
                    atexit.register(other.cleanup)
                    other = other.name
                    Pipeline(start_method=sys.argv[1]).add(job).run(range(10))
                    exists = os.path.exists(folder.name) and os.path.exists(other)
                    folder.cleanup()
                def at_end():
                    print(*(len(open(name).read()) for name in ("written", "deleted", "finalised", "at-exit")), exists)
                del job, owned
                gc.collect()
                weakref.finalize._exitfunc()
                atexit.unregister(note)
                note("at-exit")
                at_end()
            """,
        )


if __name__ == "__main__":
    unittest.main()
