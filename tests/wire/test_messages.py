"""Messages: each declared kind arrives as it was sent, and one that a receiver has no use for ends the run at once.

Law: a process of each kind gets, in the place of one message, another that is not for it.  The run raises an error that
names that one, and never hangs.
"""

from __future__ import annotations

import multiprocessing
import pickle
import pickletools
import unittest
from unittest import mock

from conveyor import Pipe, Pipeline, ProcessError, Processor, ProcessorError, SourceError
from conveyor._lean.dataclasses import NamedTuple
from conveyor.engines.process.broker.ports import Connection
from conveyor.engines.process.wire import messages
from conveyor.engines.process.wire.pipe import BlockingPipe
from tests.helpers.support import TestCase


class Undeclared(NamedTuple):
    """A message that nobody knows."""


def whole_story(error):
    """The texts of an error and of all its causes."""
    text = ""
    while error is not None:
        text += str(error)
        error = error.__cause__
    return text


class EncodingTest(TestCase):
    """As bytes, and back."""

    def test_every_kind_arrives_as_it_was_sent(self):
        assert len(messages.KINDS) > 40
        for kind in messages.KINDS.values():
            with self.subTest(kind.__name__):
                message = kind(*range(10, 10 + len(kind._fields)))
                data = messages.encode(message, [3, 4])
                again, lengths = messages.decode(memoryview(data))
                assert type(again) is kind and again == message and lengths == [3, 4]

    def test_what_travels_is_a_plain_tuple(self):
        for kind in messages.KINDS.values():
            data = messages.encode(kind(*range(len(kind._fields))), [])
            assert type(pickle.loads(data)) is tuple
            assert not any("GLOBAL" in opcode.name for opcode, _, _ in pickletools.genops(data)), kind

    def test_every_kind_says_who_sends_it_to_whom(self):
        for kind in messages.KINDS.values():
            if kind.__module__ != messages.__name__:
                # Between the broker and the nodes of a cluster.
                continue
            first = kind.__doc__.partition(":")[0].lower()
            assert " to " in first and any(name in first for name in ("caller", "broker", "worker")), kind

    def test_a_kind_that_is_not_declared(self):
        with self.assertRaisesRegex(messages.ProtocolError, "'Undeclared'"):
            messages.decode(messages.encode(Undeclared(), []))


@unittest.skipUnless(
    "fork" in multiprocessing.get_all_start_methods(), "every process has to take over what is patched"
)
class UnexpectedTest(TestCase):
    """In the place of one message comes another."""

    def error(self, end, kind, other):
        """The error of a run in which `end` sends `other` in the place of each message of a kind."""
        send = end.send

        def send_other(self, message, blobs=()):
            send(self, other if type(message) is kind else message, blobs)

        with mock.patch.object(end, "send", send_other), self.assertRaises(Exception) as caught:
            pipeline = Pipeline(start_method="fork", channel="pipe").add(Processor(abs)).add(Pipe(maxsize=4))
            pipeline.add(Processor(abs)).run(iter(range(1000)))
        assert type(other).__name__ in whole_story(caught.exception), whole_story(caught.exception)
        return type(caught.exception)

    def test_the_caller_gets_what_is_not_for_it(self):
        assert self.error(Connection, messages.Results, messages.Resume()) is messages.ProtocolError
        assert self.error(Connection, messages.Opened, messages.CancelRun(1)) is messages.ProtocolError

    def test_the_source_gets_what_is_not_for_it(self):
        assert self.error(Connection, messages.Pull, messages.Resume()) is SourceError

    def test_the_broker_gets_from_the_caller_what_is_not_for_it(self):
        assert self.error(BlockingPipe, messages.SourceItems, messages.Pull(1, 7)) is ProcessError
        assert self.error(BlockingPipe, messages.Consumed, messages.Resume()) is ProcessError

    def test_the_broker_gets_from_a_worker_what_is_not_for_it(self):
        assert self.error(BlockingPipe, messages.Reply, messages.Grant(1, 7)) is ProcessError

    def test_a_worker_gets_what_is_not_for_it(self):
        assert self.error(Connection, messages.StartLease, messages.Ready()) is ProcessorError

    def test_one_that_nobody_knows(self):
        assert self.error(Connection, messages.Results, Undeclared()) is messages.ProtocolError
        assert self.error(Connection, messages.Pull, Undeclared()) is SourceError
        assert self.error(BlockingPipe, messages.SourceItems, Undeclared()) is ProcessError
        assert self.error(BlockingPipe, messages.Reply, Undeclared()) is ProcessError
        assert self.error(Connection, messages.StartLease, Undeclared()) is ProcessorError


if __name__ == "__main__":
    unittest.main()
