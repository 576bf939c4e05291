"""What a worker does about a call that failed: it tries again, gives up, or ends the run.

Law: the decisions are those of `Policy` in `stages/settings.py`.  What is given up is noted in the outbox, and what
goes on in its place takes its place in the order.
"""

from __future__ import annotations

from collections.abc import Callable
from types import GeneratorType

from conveyor._lean.short_repr import shown_by
from conveyor._lean.typing import TYPE_CHECKING, Any
from conveyor._system.clock import time
from conveyor.engines.failures import (
    WORKER_KILLED,
    DiedAt,
    GivenUpFor,
    LeaseFailed,
    OverdueAt,
    death,
    failure_of,
    overdue,
)
from conveyor.engines.process.wire.codec import Unpicklable
from conveyor.engines.process.worker.lease_items import LeaseItems
from conveyor.engines.process.worker.mailbox import Inbox, Outbox
from conveyor.errors import ProcessorError
from conveyor.stages.outputs import Fused, StageError, WorkerRecord
from conveyor.stages.processor import Processor, work_of
from conveyor.stages.settings import policy_of

if TYPE_CHECKING:
    from conveyor.core.commands import GiveUp
    from conveyor.engines.process.wire.configs import WorkerConfig


# What `on_error` gives where it has failed, and the submitted item with it.
_REPORTED = object()


class CallRaised(Exception):
    """The job raised in the call at hand.

    It had given `given` outputs by then, of which `unsent` were not sent yet.
    """

    def __init__(self, error: BaseException, given: int, unsent: int) -> None:
        super().__init__()
        self.error = error
        self.given = given
        self.unsent = unsent


class Retrier:
    """Carries out the policy of one Processor.

    `failure_of` describes an exception; `overdue_end` says what becomes of a worker that takes too long.
    """

    failure_of = staticmethod(failure_of)
    overdue_end = WORKER_KILLED

    def __init__(
        self,
        config: WorkerConfig,
        processor: Processor[Any, Any],
        inbox: Inbox,
        outbox: Outbox,
        lease_items: LeaseItems,
        record: WorkerRecord,
    ) -> None:
        self.policy = policy_of(processor)
        self._name = config.name
        self._format_item = shown_by(config.redact)
        self._processor = processor
        self._inbox = inbox
        self._outbox = outbox
        self._lease_items = lease_items
        self.record = record
        # Whether the lease at hand is the job's `finish`, for which no policy speaks.
        self.finishing = False
        # Whether the items of the lease at hand are submitted ones: then one that fails ends nothing else.
        self.traced = False

    @property
    def fails_at_once(self) -> bool:
        """Whether the run is over when a call fails, so that nobody waits for what the calls before it gave."""
        return self.policy.strict and not self.traced

    def recover(self, failed: BaseException, call_again: Callable[[Any, int, int], None]) -> None:
        """Make the call at hand again, or give it up, as the policy says; raises LeaseFailed to end the run.

        `call_again` makes the call once more, without the outputs that were given; it raises CallRaised.
        """
        before = self.record.attempt
        try:
            self._recover(failed, call_again)
        finally:
            self.record.attempt = before

    def _recover(self, failed: BaseException, call_again: Callable[[Any, int, int], None]) -> None:
        policy, attempts = self.policy, 1
        if isinstance(failed, Unpicklable):
            # A second attempt would give the same.  What is sent while it waits is not to say yet that it was given up.
            if policy.replaces:
                self._inbox.await_credit()
            value = self.replace(self._outbox.call_at_hand, failed.item, failed.__cause__ or failed)
            self._put_in_place(value, 0)
            return
        if not isinstance(failed, CallRaised):
            failed = CallRaised(failed, 0, 0)
        index = self._outbox.call_at_hand
        while policy.tries_again(failed.error, attempts):
            if self._inbox.pause(policy.delay(attempts)):
                failed.unsent = 0
            attempts += 1
            self.record.attempt += 1
            self._outbox.meter.retried += 1
            try:
                argument = self._lease_items.fresh(index)
            except Exception as error:
                # It cannot be had once more, and the next attempt may find it.
                failed = CallRaised(error, failed.given, failed.unsent)
                continue
            try:
                call_again(argument, failed.given, failed.unsent)
                return
            except CallRaised as again:
                failed = again
        self.give_up(failed.error, index, attempts, failed.unsent)

    def give_up(
        self, error: BaseException, index: int, attempts: int, unsent: int, why: GivenUpFor | None = None
    ) -> None:
        """Give a call up, of which so many outputs are not sent, or end the run; `why`: the call did not raise that."""
        policy = self.policy
        if not policy.gives_up:
            failed = self.raised(error, "process", index, attempts)
            self._end_or_report(failed if why is None else LeaseFailed(index, why))
            self._outbox.abandon_call()
            return
        failure = why or self.failure_of(error, "process", self._text_of(index, error), attempts)
        if policy.replaces and self._inbox.await_credit():
            # Before it is noted: what is sent while it waits is not to say so of a call that may be made again.
            unsent = 0
        self._put_in_place(self._replacement(index, error, attempts, failure), unsent)

    def _end_or_report(self, failed: LeaseFailed) -> object:
        """End the run; of a submitted item, only report that it has failed, and return _REPORTED."""
        if self.finishing or not self.traced:
            raise failed from None
        self._outbox.send_failure(failed.index, failed.failure)
        return _REPORTED

    def _put_in_place(self, value: Any, unsent: int) -> None:
        """End the call at hand: `value` goes on in its place, after outputs of which so many are not sent."""
        if value is not None:
            if self._inbox.await_credit():
                unsent = 0
            self._outbox.add(value)
            unsent += 1
        self._outbox.end_call(unsent)

    def _replacement(
        self, index: int, error: BaseException, attempts: int, why: GivenUpFor, replaces: bool = True
    ) -> Any:
        """Note that a call was given up; return what goes on in the place of what the job did not give for it.

        Where `on_error` fails, the call has failed by that, and is not noted: it would count twice.
        """
        value = self._replacing(index, error) if replaces and self.policy.replaces else None
        if value is not _REPORTED:
            self._outbox.log.given_up.append((index, attempts, time.time(), why))
            return value
        return None

    def _replacing(self, index: int, error: BaseException) -> Any:
        """Return what `on_error` gives; _REPORTED where it has failed, and that is reported."""
        assert callable(self.policy.on_error)
        try:
            # The type says Exception, for what users are to write; SystemExit is treated like one.
            value = self.policy.on_error(self._lease_items.fresh(index), error)  # type: ignore[arg-type]
        except BaseException as second:
            return self._end_or_report(self.raised(second, "on_error", index))
        if type(value) is GeneratorType:
            # It is not taken apart, and what cannot be sent would be asked to be replaced again, without end.
            cause = TypeError("cannot pickle 'generator' object")
            return self._end_or_report(self._unpicklable(cause, value, index))
        try:
            return self._outbox.freeze(value)
        except Unpicklable as refused:
            return self._end_or_report(self._unpicklable(refused.__cause__ or refused, value, index))

    def replace(self, index: int, output: Any, cause: BaseException) -> Any:
        """Return what goes on in the place of an output that cannot be pickled, None for nothing."""
        raised = self._unpicklable(cause, output, index)
        if self.finishing or not self.policy.gives_up:
            self._end_or_report(raised)
            return None
        return self._replacement(index, cause, 1, raised.failure)

    def carry_out(self, give_up: GiveUp) -> None:
        """Give up the only call of the lease: workers died at it, or were too long at it."""
        # Loaded with the lease that brought this: most workers never need it.
        from conveyor.core.commands import Loss, Reason

        cause, first, last = give_up.cause, give_up.first, give_up.last
        is_overdue, replaces = give_up.kind == Reason.OVERDUE, self.policy.replaces and not give_up.skip_unpickling
        item = self._text_of(0) if replaces else None
        why = OverdueAt(cause, item, self.overdue_end) if is_overdue else DiedAt(cause, item)
        self.record.attempt = give_up.attempts
        error: ProcessorError = (
            overdue(self._name, cause, first, last, item, self.overdue_end)
            if is_overdue
            else death(self._name, "process", cause, first, last, Loss.ITEM)
        )
        self._put_in_place(self._replacement(0, error, give_up.attempts, why, replaces), 0)

    # What ends the run

    def failure(self, error: BaseException, index: int) -> LeaseFailed:
        """Return what ends the run, where the first failure does."""
        if isinstance(error, Unpicklable):
            return self._unpicklable(error.__cause__ or error, error.item, index)
        return self.raised(error, "process", index)

    def raised(self, error: BaseException, phase: str, index: int, attempts: int = 1) -> LeaseFailed:
        """Return what ends the run, of a call of the lease."""
        return LeaseFailed(index, self.failure_of(error, phase, self._text_of(index, error), attempts))

    def _unpicklable(self, cause: BaseException, output: Any, index: int) -> LeaseFailed:
        """Return what ends the run, for an output that cannot be pickled."""
        failure = self.raised(cause, "pickle", index).failure.about(self._format_item(output))
        call = work_of(self._processor)
        if isinstance(call, Fused):
            # What the others gave was not pickled.
            failure = failure._replace(processor=call.last)
        return LeaseFailed(index, failure)

    def _text_of(self, index: int, error: BaseException | None = None) -> str | None:
        """Return what a message says of an argument of the lease, or of what a fused job had that raised."""
        if isinstance(error, StageError):
            return self._format_item(error.items[0]) if error.items else None
        return self._lease_items.text_of(index, self._format_item)
