"""Handlers, masks and timers of the program: none lives on in broker and workers, and a run leaves the caller's alone.

Law: each test is a script, run with every start method, whose signals go to its whole process group.
"""

from __future__ import annotations

import signal
import textwrap
import unittest

from tests.helpers.scripts import Script, ScriptTestCase

# `job` says what it finds in its process.
SEE = """
import faulthandler, os, signal, sys, threading
from conveyor import Pipeline, Processor
CALLER, ran = os.getpid(), []
def handle(number, frame):
    ran.append("program" if os.getpid() == CALLER else "elsewhere")
def give(item):
    return item
def see(item):
    kinds = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    return (
        sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        [number for number in range(1, signal.NSIG) if getattr(signal.getsignal(number), "__name__", "") == "handle"],
        [signal.getitimer(kind) for kind in kinds],
        signal.set_wakeup_fd(-1),
    )
"""


@unittest.skipUnless(hasattr(signal, "pthread_sigmask"), "there are no masks of signals")
class SignalsOfTheProgramTest(ScriptTestCase):
    """They mean the program."""

    def test_what_is_sent_to_the_group_is_handled_by_the_program_alone(self) -> None:
        scripts = []
        for setup in (
            # Before anything is started; where each process imports the script; when the processes are up already.
            ("handles()\n        pipeline = make().open()", "pass"),
            ("pipeline = make().open()\n        handles()", "pass"),
            ("pipeline = make().open()", "handles()"),
        ):
            body = f"""
                    NUMBERS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT)
                    def handles():
                        for number in NUMBERS:
                            signal.signal(number, handle)
                    def make():
                        return Pipeline(start_method=sys.argv[1]).add(Processor(give, workers=2))
                    {setup[1]}
                    if __name__ == "__main__":
                        {setup[0].replace("        ", " " * 24)}
                        count = 0
                        for item in pipeline.stream(iter(range(100))):
                            count += 1
                            if item % 25 == 10:
                                os.killpg(0, NUMBERS[item // 25])
                        pipeline.close()
                        print(count, ran)
                """
            scripts += [Script(SEE + textwrap.dedent(body), (method,)) for method in self.methods()]
        self.all_print("100 ['program', 'program', 'program', 'program']", scripts)

    def every_method(self, expected: str, body: str, without: str = "forkserver") -> None:
        """Run a script that begins with what all have in common.

        Most need no fork server: what is sent to the group shows whether its processes are set up as the others are.
        """
        methods = [method for method in self.methods() if method != without]
        self.all_print(expected, [Script(SEE + textwrap.dedent(body), (method,)) for method in methods])

    def test_all_that_a_program_may_handle(self) -> None:
        self.every_method(
            "20 {'program'} True",
            """
            NAMES = "HUP QUIT USR1 USR2 ALRM VTALRM PROF IO TSTP TTIN TTOU XCPU WINCH URG CONT PIPE XFSZ CHLD".split()
            NUMBERS = [getattr(signal, f"SIG{name}") for name in NAMES if hasattr(signal, f"SIG{name}")]
            NUMBERS += [signal.SIGRTMIN + 1] if hasattr(signal, "SIGRTMIN") else []
            if __name__ == "__main__":
                for number in NUMBERS:
                    signal.signal(number, handle)
                count = 0
                with Pipeline(start_method=sys.argv[1]).add(Processor(give, workers=2)) as pipeline:
                    for item in pipeline.stream(iter(range(20))):
                        count += 1
                        # One by one: with `faulthandler`, handlers have a small stack, on which the frames of some ten
                        # signals that are delivered at once find no room.
                        for number in NUMBERS[item : item + 1]:
                            os.killpg(0, number)
                print(count, set(ran), len(ran) >= len(NUMBERS))
            """,
        )

    def test_signals_that_the_program_blocks_and_waits_for(self) -> None:
        self.every_method(
            "100 [10, 12]",
            """
            if __name__ == "__main__":
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO})
                waited = []
                with Pipeline(start_method=sys.argv[1]).add(Processor(give, workers=2)) as pipeline:
                    count = 0
                    for item in pipeline.stream(iter(range(100))):
                        count += 1
                        if item in (10, 50):
                            os.killpg(0, signal.SIGUSR1 if item == 10 else signal.SIGUSR2)
                            waited.append(int(signal.sigwait({signal.SIGUSR1, signal.SIGUSR2})))
                            os.killpg(0, signal.SIGIO)
                print(count, waited)
            """,
        )

    def test_a_program_that_ignores_a_hang_up(self) -> None:
        # As `nohup` has it, and what a job starts inherits it.
        self.every_method(
            "[True, True] 100",
            """
            def ignores(item):
                return signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, signal.getsignal(signal.SIGIO) is signal.SIG_IGN
            if __name__ == "__main__":
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
                signal.signal(signal.SIGIO, signal.SIG_IGN)
                print(list(*Pipeline(start_method=sys.argv[1]).add(Processor(ignores)).run([1])), end=" ")
                count = 0
                for item in Pipeline(start_method=sys.argv[1]).add(Processor(give)).stream(iter(range(100))):
                    count += 1
                    if item == 10:
                        os.killpg(0, signal.SIGHUP)
                        os.killpg(0, signal.SIGIO)
                print(count)
            """,
        )

    def test_nothing_of_it_is_in_a_worker(self) -> None:
        self.every_method(
            "[([], [], [(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], -1)]",
            """
            if __name__ == "__main__":
                for number in range(1, signal.NSIG):
                    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV):
                        try:
                            signal.signal(number, handle)
                        except (OSError, ValueError):
                            pass
                signal.set_wakeup_fd(os.pipe2(os.O_NONBLOCK)[1] if hasattr(os, "pipe2") else -1)
                for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                    signal.setitimer(kind, 1000, 1000)
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                print(Pipeline(start_method=sys.argv[1]).add(Processor(see)).run([1]))
            """,
            without="",
        )

    def test_what_a_job_waits_for_comes(self) -> None:
        """An alarm, the end of what it started, and the death of what it told to end, although the program blocks them."""
        self.every_method(
            "[('alarm', -15, 0)]",
            """
            import subprocess
            def wait(item):
                came = []
                signal.signal(signal.SIGALRM, lambda number, frame: came.append("alarm"))
                signal.setitimer(signal.ITIMER_REAL, 0.01)
                while not came:
                    signal.pause()
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
                child.terminate()
                return came[0], child.wait(), subprocess.run([sys.executable, "-c", ""]).returncode
            if __name__ == "__main__":
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
                signal.signal(signal.SIGALRM, handle)
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM, signal.SIGCHLD})
                print(Pipeline(start_method=sys.argv[1]).add(Processor(wait)).run([1]))
            """,
        )

    def test_a_worker_that_is_told_to_end(self) -> None:
        self.every_method(
            "[-15, -15]",
            """
            class End(Processor):
                count = 0
                def process(self, item):
                    self.count += 1
                    os.kill(os.getpid(), signal.SIGTERM)
                    signal.pause()
            if __name__ == "__main__":
                for block in (False, True):
                    signal.signal(signal.SIGTERM, handle)
                    if block:
                        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                    try:
                        Pipeline(start_method=sys.argv[1]).add(End()).run([1])
                    except Exception as error:
                        ran.append(error.exitcode)
                print(ran)
            """,
        )


@unittest.skipUnless(hasattr(signal, "pthread_sigmask"), "there are no masks of signals")
class SignalsOfTheCallerTest(ScriptTestCase):
    """A run leaves them as they are."""

    def test_the_mask(self) -> None:
        self.prints_by_every_method(
            "good",
            """
            import os, signal, sys
            from conveyor import Pipeline, Processor
            if __name__ == "__main__":
                for channel in ("pipe", "queue"):
                    # What waits is still waiting afterwards.
                    for blocked in ([], [signal.SIGTERM, signal.SIGINT, signal.SIGALRM]):
                        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
                        for number in blocked[:2]:
                            os.kill(os.getpid(), number)
                        Pipeline(start_method=sys.argv[1], channel=channel).add(Processor(abs)).run([1])
                        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {*blocked}, (channel, blocked)
                        assert signal.sigpending() == {*blocked[:2]}, (channel, blocked)
                        # Taken, so that the next one begins without.
                        for number in blocked[:2]:
                            assert signal.sigwait([number]) == number
                        signal.pthread_sigmask(signal.SIG_SETMASK, ())
                print("good")
            """,
        )

    def test_handlers_timers_and_the_descriptor_that_wakes(self) -> None:
        self.prints_by_every_method(
            "True True True",
            """
            import os, signal, socket, sys
            from conveyor import Pipeline, Processor
            def handle(number, frame):
                pass
            if __name__ == "__main__":
                numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE)
                for number in numbers:
                    signal.signal(number, handle)
                signal.setitimer(signal.ITIMER_REAL, 1000, 1000)
                near, far = socket.socketpair()
                far.setblocking(False)
                signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
                with Pipeline(start_method=sys.argv[1]).add(Processor(abs)) as pipeline:
                    pipeline.run([1])
                print({signal.getsignal(number) for number in numbers} == {handle}, end=" ")
                print(signal.getitimer(signal.ITIMER_REAL)[1] == 1000, signal.set_wakeup_fd(-1) == far.fileno())
                near.close()
                far.close()
            """,
        )


if __name__ == "__main__":
    unittest.main()
