"""What the autoscaler sees of a step.

Law: counts the time up to now, and changes nothing else.
"""

from __future__ import annotations

from conveyor.core.nodes.step import Step
from conveyor.core.tuning.autoscaling import StepLoad


def load_of(step: Step, waiting: int, fitting: int | None) -> StepLoad:
    """Return the load of a step; `waiting` items more wait further in front, for want of a pipe here.

    `fitting`: for how many workers memory has room.
    """
    step.count_time()
    roster, node, totals, now = step.step_roster, step.step_roster.node, step.step_roster.totals, step.context.now
    present = len(step.book.staying)
    return StepLoad(
        name=node.name,
        workers=present,
        starting=len(roster.starting),
        # What a worker would give at the end of the stream must not be lost with it.
        least=max(node.workers, present) if node.finishes else node.workers,
        most=roster.most(present, now),
        waiting=(step.held + waiting) // step.batch_size,
        bound=max(1, step.bound // step.batch_size),
        ended=step.intake.ended,
        calls=totals.calls,
        busy=totals.busy,
        cpu=totals.cpu,
        waited=totals.waited,
        blocked=totals.blocked,
        start=roster.start_seconds,
        threads=node.hands if node.threaded else 1,
        fitting=fitting,
    )
