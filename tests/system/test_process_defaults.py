"""What the program sets for its whole process is neither in Conveyor's own objects, nor changed by a run.

Law: each test is a script, because such settings stay; and each is run with every start method.
"""

from __future__ import annotations

import unittest

from tests.helpers.scripts import Script, ScriptTestCase


class DefaultsOfTheProgramTest(ScriptTestCase):
    """They are for the program's own objects."""

    def test_the_default_timeout_of_sockets(self) -> None:
        bodies = [
            f"""
            import socket, sys, time
            from conveyor import Pipeline, Processor
            def double(item):
                time.sleep(0.2)
                return 2 * item
            def source():
                for item in range(3):
                    time.sleep(0.2)
                    yield item
            if __name__ == "__main__":
                pass
            {where}socket.setdefaulttimeout(0.05)
            if __name__ == "__main__":
                with Pipeline(start_method=sys.argv[1]).add(Processor(double)) as pipeline:
                    print(pipeline.run(source()), end=" ")
                # More than the buffers of the system hold.
                heavy = Pipeline(start_method=sys.argv[1]).add(Processor(bytes)).run([1 << 20] * 8)
                print([len(set(map(len, heavy))) - 1, len(heavy) // 8])
            """
            # In the script's body it is set in the processes that import the script, too.
            for where in ("", "    ")
        ]
        self.all_print("[0, 2, 4] [0, 1]", [Script(body, (method,)) for body in bodies for method in self.methods()])

    def test_sockets_that_the_program_replaced(self) -> None:
        self.prints_by_every_method(
            "[0, 1, 2]",
            """
            import socket, sys
            from conveyor import Pipeline, Processor
            class Blocked(socket.socket):
                def __init__(self, *arguments, **keywords):
                    raise RuntimeError("this program may not use the network")
            socket.socket = Blocked
            if __name__ == "__main__":
                print(Pipeline(start_method=sys.argv[1]).add(Processor(abs)).run([0, -1, -2]))
            """,
        )

    def test_many_at_once(self) -> None:
        self.prints_by_every_method(
            "[0, 1, 4, 9] ['0', '1', '2', '3']",
            """
            import decimal, gc, locale, os, sys, threading
            from conveyor import Pipeline, Processor
            def square(item):
                return item * item
            if __name__ == "__main__":
                os.umask(0o077)
                os.chdir("/")
                gc.disable()
                sys.setswitchinterval(0.5)
                sys.setrecursionlimit(150)
                threading.stack_size(256 * 1024)
                decimal.getcontext().prec = 1
                print(Pipeline(start_method=sys.argv[1]).add(Processor(square)).run(iter(range(4))), end=" ")
                queues = Pipeline(start_method=sys.argv[1], channel="queue")
                print(queues.add(Processor(str)).run(iter(range(4))))
            """,
        )


class DefaultsAfterARunTest(ScriptTestCase):
    """They are the program's to change."""

    def test_the_start_method_of_multiprocessing(self) -> None:
        self.prints_by_every_method(
            "None None spawn",
            """
            import multiprocessing, sys
            from conveyor import Pipeline, Processor
            if __name__ == "__main__":
                for channel in ("pipe", "queue"):
                    Pipeline(start_method=sys.argv[1], channel=channel).add(Processor(abs)).run([1])
                    print(multiprocessing.get_start_method(allow_none=True), end=" ")
                multiprocessing.set_start_method("spawn")
                Pipeline(start_method=sys.argv[1]).add(Processor(abs)).run([1])
                print(multiprocessing.get_start_method())
            """,
        )


if __name__ == "__main__":
    unittest.main()
