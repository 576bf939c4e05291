"""The simulation of the core, for as long as a test may take; `python3 -m tests.helpers.simulation` goes on for longer.

Law: a fixed number of seeds passes, a seed is the same each time, and what fails is made smaller and can be repeated.
"""

from __future__ import annotations

import unittest
from unittest import mock

from conveyor.core import events
from tests.helpers.simulated import SimulatedShell
from tests.helpers.simulation import Scenario, Stage, main, shrunk, simulate
from tests.helpers.spread import spread
from tests.helpers.support import ALL, TestCase
from tests.simulation.test_planted_bugs import BUGS, Failure, planted


class Simulation(TestCase):
    """Whatever happens, the results are those of the inline engine, and nothing is lost, doubled or left."""

    time_limit = 180.0

    def test_seeds(self) -> None:
        def simulated(seed: int) -> tuple[int, list[str]]:
            said: list[str] = []
            return main(["--seeds", "1", "--events", "3000", "--first-seed", str(seed)], said.append), said

        for result, said in spread(simulated, range(500, 506 if ALL else 502)):
            assert result == 0 and len(said) == 1, "\n".join(said)

    def test_workers_that_begin_several_items_at_once(self) -> None:
        spread(lambda seed: simulate(Scenario(seed, events=3000, hands=100)), range(600, 606 if ALL else 602))

    def test_seeds_that_failed_once(self) -> None:
        # A join that is blocked and tells nobody; a worker that dies in `finish` with a state; one that dies of what
        # is given up for that.
        spread(lambda seed: simulate(Scenario(seed, events=3000)), (7700510, 7700042, 9900607))

    def test_a_seed_is_the_same_each_time(self) -> None:
        for seed in range(3):
            assert simulate(Scenario(seed, 500)) == simulate(Scenario(seed, 500))


class Failures(TestCase):
    """A seed that fails."""

    def first_failure(self) -> Failure:
        for seed in range(100):
            try:
                simulate(Scenario(seed, events=400))
            except Failure as failure:
                return failure
        raise AssertionError("none of these seeds fails")

    def test_it_is_made_smaller_and_can_be_repeated(self) -> None:
        bug = next(bug for bug in BUGS if bug.method == "accept")
        said: list[str] = []
        with mock.patch.object(bug.owner, bug.method, planted(bug)):
            small = shrunk(self.first_failure(), seconds=5.0)
            assert "the results differ" in str(small), small
            assert small.scenario.items < 60 and small.scenario.runs < 1000 and small.scenario.every == 1
            words = small.scenario.command.split()
            assert words[:3] == ["python3", "-m", "tests.helpers.simulation"]
            assert main(words[3:], said.append) == 1
        assert str(small) in said[0] and words[-1] in said[0]
        # Without the bug the same passes.
        assert main(words[3:], said.append) == 0


class Fence(TestCase):
    """What a worker says that was declared lost."""

    def lost(self) -> tuple[SimulatedShell, events.Replied]:
        """A machine of which one worker was lost, and what that had said last."""
        for seed in range(50):
            stage = Stage(Scenario(seed))
            shell = SimulatedShell(stage.plan, stage.inputs.random, lambda choose: choose)
            given = stage.input()
            if given is None:
                continue
            shell.begin(*given, stage.ordered)
            while not shell.finished and not shell.failure:
                shell.step()
                for event in shell.stale:
                    if isinstance(event, events.Replied) and not shell.machine.over:
                        return shell, event
        raise AssertionError("none of these seeds loses a worker")

    def test_the_shell_holds_it_off(self) -> None:
        shell, event = self.lost()
        before = shell.count
        shell.come_late(event)
        assert (shell.rejected, shell.count) == (1, before)

    def test_the_core_has_no_fence_and_does_not_take_it_for_news(self) -> None:
        """No lease has the number of one that was lost, so it breaks off instead of committing anything twice."""
        shell, event = self.lost()
        with self.assertRaises(KeyError):
            shell.machine.handle(event, shell.now)
        # What it says of what it has begun is of no concern.
        assert shell.machine.handle(events.RevokeResult(event.worker, event.lease, 1), shell.now) == []


if __name__ == "__main__":
    unittest.main()
