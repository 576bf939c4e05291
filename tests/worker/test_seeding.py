"""Random numbers: no two workers draw the same ones, and a seed brings them back.

Law: a worker says what it has drawn in `setup`, in a file of its own, so that each is heard, whatever it gets to do.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys
import textwrap
from pathlib import Path

from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork
from conveyor.engines.process.worker.seeding import seed_of_pipeline
from tests.helpers.late import subprocess
from tests.helpers.support import ALL, ROOT, TestCase

METHODS = ("fork", "spawn", "forkserver") if ALL else ("fork", "spawn")
HAS_NUMPY = importlib.util.find_spec("numpy") is not None


class Draws(Processor):
    """Draws some numbers in `setup`, and says which."""

    restartable = True

    def __init__(self, folder, **settings):
        self.folder = folder
        super().__init__(**settings)

    def draw(self):
        if not HAS_NUMPY:
            return random.random()
        import numpy.random

        return f"{random.random()} {numpy.random.random()}"

    def setup(self):
        Path(self.folder, f"drawn {os.getpid()}").write_text(str(self.draw()))

    def process(self, item):
        died = Path(self.folder, "died")
        if item == "die" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item


class DrawsOfOwn(Draws):
    """Seeds by itself."""

    def draw(self):
        random.seed(5)
        return random.random()


def draw(item):
    return random.random()


class RandomNumbersTest(TestCase):
    def setUp(self):
        self.leave_nothing()

    def drawn(self, kind=Draws, *, items=(), workers=3, **settings):
        """Return what each worker of a pipeline has drawn."""
        folder = self.new_folder()
        with Pipeline(**settings).add(kind(folder, workers=workers)) as pipeline:
            if items:
                pipeline.run(items)
        return sorted(path.read_text() for path in Path(folder).glob("drawn *"))

    def differ(self, *drawn):
        numbers = [number for each in drawn for text in each for number in text.split()]
        self.assertEqual(len(numbers), len(set(numbers)), numbers)

    def test_workers_and_epochs_differ(self):
        for method in METHODS[:2]:
            with self.subTest(method=method):
                first, second = (self.drawn(start_method=method, workers=2) for _ in range(2))
                self.assertEqual((len(first), len(second)), (2, 2))
                self.differ(first, second)

    def test_a_seed_brings_them_back_under_every_start_method(self):
        first, *others = (self.drawn(start_method=method, workers=2, seed=3) for method in METHODS)
        self.differ(first, self.drawn(start_method="fork", workers=2, seed=4))
        self.assertEqual(others, [first] * len(others))

    def test_the_state_of_the_caller_is_read_and_not_changed(self):
        before = random.getstate()
        for method in METHODS[: 2 if ALL else 1]:
            self.drawn(start_method=method, workers=1)
        self.assertEqual(random.getstate(), before)
        other = seed_of_pipeline(None).split()[1]
        random.random()
        self.addCleanup(random.setstate, before)
        self.assertNotEqual(seed_of_pipeline(None).split()[1], other)

    def test_a_worker_that_replaces_another(self):
        runs = [self.drawn(items=["die"], workers=1, start_method="fork", seed=3) for _ in range(2)]
        self.assertEqual((len(runs[0]), runs[0]), (2, runs[1]))
        self.differ(runs[0])

    def test_branches(self):
        folder = self.new_folder()
        pipeline = Pipeline(start_method="fork").add(Draws(folder)).add(Pipe()).add(ReplicatingFork(2))
        with pipeline.add(Draws(folder), Draws(folder)).add(Pipe(), Pipe()).add(Join(2)):
            pass
        drawn = [path.read_text() for path in Path(folder).iterdir()]
        self.assertEqual(len(drawn), 3)
        self.differ(drawn)

    def test_what_the_job_seeds_itself(self):
        self.assertEqual(len(set(self.drawn(DrawsOfOwn, start_method="fork"))), 1)

    def test_the_inline_engine_leaves_the_generator_to_the_caller(self):
        before = random.getstate()
        self.addCleanup(random.setstate, before)
        random.seed(3)
        expected = [random.random() for _ in range(3)]
        random.seed(3)
        self.assertEqual(Pipeline(engine="inline", seed=7).add(Processor(draw)).run(range(3)), expected)

    def test_a_program_that_seeds_itself_gives_the_same_again(self):
        self.gives_the_same_again("import random; random.seed(1)")

    def test_modules_that_the_job_imports_later(self):
        self.gives_the_same_again("", "seed=3")

    def gives_the_same_again(self, begin, setting=""):
        """Run a program twice, side by side, whose job draws from modules that it imports itself."""
        started = [self.start_program(begin, setting) for _ in range(2)]
        first, again = (process.communicate(timeout=50) for process in started)
        self.assertEqual([process.returncode for process in started], [0, 0], (first, again))
        self.assertEqual((first, len(first[0].splitlines()), first[1]), (again, 2, ""))

    def start_program(self, begin, setting):
        """Start it; it prints a line for each of two start methods."""
        folder = self.new_folder()
        files = {
            # Has what is called of a library that is too large to be installed for a test.
            "torch.py": """
                import random
                own = random.Random()
                manual_seed, random = own.seed, own.random
            """,
            "jobs.py": f"""
                def draw(item):
                    import random, torch
                    if {HAS_NUMPY}:
                        import numpy.random
                        item = numpy.random.random()
                    return item, random.random(), torch.random()
            """,
            "program.py": f"""
                import sys
                from conveyor import Pipeline, Processor
                from jobs import draw
                if __name__ == "__main__":
                    {begin or "pass"}
                    before = set(sys.modules)
                    for method in ("fork", "spawn"):
                        print(Pipeline(start_method=method, {setting}).add(Processor(draw)).run([1, 2]))
                    assert not {{"random", "numpy", "torch"}} & set(sys.modules) - before
            """,
        }
        for name, text in files.items():
            Path(folder, name).write_text(textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, str(Path(folder, "program.py"))],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_what_can_be_a_seed(self):
        for wrong in ("3", 3.0, True, b"3"):
            with self.subTest(seed=wrong), self.assertRaisesRegex(TypeError, "seed must be an int, or None"):
                Pipeline(seed=wrong)
        self.assertEqual(repr(Pipeline(seed=0)), "Pipeline(seed=0)")
