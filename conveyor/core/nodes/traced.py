"""The nodes of a traced run: one whose items, submitted one by one or from a source, have results of their own.

Law: what comes of one submitted item waits for nothing that comes of another.  So no step keeps an order and no fork is
tracked: the lineage of each result says where it belongs.  An item that fails is reported, and nothing more is wanted
of it; the run goes on.  Joins that merge, ends of forks and forks that balance are those of any run.
"""

from __future__ import annotations

from collections.abc import Callable

from conveyor._lean.dataclasses import replace
from conveyor._lean.typing import Any, ClassVar, Protocol
from conveyor.core.commands import Deliver, Fail, Finish, GaveUp, GiveUp, ItemFailed, Reason
from conveyor.core.data.group_sizes import GroupSizes, append_groups, total
from conveyor.core.data.lineage import Lineage, Origins, Traced, bare, lineages_of
from conveyor.core.data.pieces import Piece, Pieces, Weave
from conveyor.core.events import Raised, Replied, WorkerLost
from conveyor.core.leasing.blame import ITEM_ATTEMPTS
from conveyor.core.leasing.credit import CreditLedger, OutputOrder
from conveyor.core.leasing.leases import Lease, LeaseBook
from conveyor.core.leasing.recovery import Recovery
from conveyor.core.nodes.base import Node, NodeContext
from conveyor.core.nodes.forks import Fork, Replicate
from conveyor.core.nodes.joins import Join, Zip
from conveyor.core.nodes.sink import Sink
from conveyor.core.nodes.step import Step
from conveyor.core.tuning.roster import StepRoster
from conveyor.graph.plan import Plan, ReplicateNode, SinkNode, StepNode, ZipNode

# What a zip takes in has no bound of its own: what enters the fork has one.
NO_BOUND = 1 << 30


class TracedContext(NodeContext, Protocol):
    """What a node may ask of the machine in a traced run."""

    origins: Origins

    def purge(self) -> None:
        """Remove what nobody wants any more from wherever it waits."""


class TracedOrder(OutputOrder):
    """Passes on outputs as they come, each with its lineage."""

    __slots__ = ("at", "origins")

    def __init__(self, ordered: bool, credit: CreditLedger) -> None:
        super().__init__(False, credit)
        self.origins: Origins
        # The index in its lease of the call that a reply begins with, and how many outputs of that are there already.
        self.at = 0, 0

    def accept(self, lease: Lease, event: Replied) -> None:
        outputs = sum([items for _, items in event.blobs])
        credit, origins = self._credit, self.origins
        credit.promised -= outputs
        lineages = self._lineages(lineages_of(lease.pieces), event, outputs)
        assert len(lineages) == outputs, "an output is of no call, or of two"
        pieces: list[Piece] = []
        start = 0
        for blob, items in event.blobs:
            pieces += origins.wanted(Traced(blob, lineages[start : start + items]), 0, items)
            start += items
        if outputs:
            credit.output.weigh(outputs, event.size)
        credit.output.push(tuple(pieces), sum([stop - start for _, start, stop in pieces]), None)

    def _lineages(self, calls: list[Lineage], event: Replied, outputs: int) -> list[Lineage]:
        """Return the lineage of each output of a reply to a lease with these calls, and count what is under way."""
        index, given = self.at
        sizes = event.group_sizes
        assert sizes is not None, "a worker did not say how many outputs each call gave"
        if not given and sizes == [(1, event.calls)] and outputs == event.calls:
            # Each call gave one output, which takes the place of its item.
            return calls[index : index + outputs]
        lineages: list[Lineage] = []
        origins = self.origins
        for size, repeat in sizes:
            for lineage in calls[index : index + repeat]:
                if size == 1 and not given:
                    lineages.append(lineage)
                else:
                    lineages += [(*lineage, place) for place in range(given, given + size)]
                    origins.add(lineage[0], size - 1)
                given = 0
            index += repeat
        # These are of the call that the worker is at.
        if rest := outputs - total(sizes):
            lineage = calls[index]
            lineages += [(*lineage, place) for place in range(given, given + rest)]
            origins.add(lineage[0], rest)
        return lineages


class TracedRecovery(Recovery):
    """Gives up what ends its workers, whatever the policy of the step: that is the failure of one submitted item."""

    __slots__ = ()

    def __init__(self, node: StepNode, book: LeaseBook, order: OutputOrder) -> None:
        super().__init__(replace(node, gives_up=True), book, order)

    def _lose_unpickled(self, lease: Lease, event: WorkerLost) -> Fail | None:
        failure = super()._lose_unpickled(lease, event)
        if failure is not None:
            # One of these ends whatever process unpickles it, and nobody knows which.
            for number in range(lease.first + lease.items - 1, lease.first - 1, -1):
                requeued = self.requeue(lease, 1)
                deaths = ITEM_ATTEMPTS + 1
                requeued.give_up = GiveUp(Reason.DIED, event.cause, deaths, number, number, skip_unpickling=True)
        return None


class TracedStep(Step):
    """A step whose leases have lineages."""

    ORDER: ClassVar[type[OutputOrder]] = TracedOrder
    RECOVERY: ClassVar[type[Recovery]] = TracedRecovery
    context: TracedContext
    order: TracedOrder

    def __init__(self, step_roster: StepRoster, context: TracedContext) -> None:
        super().__init__(step_roster, context)
        self.order.origins = context.origins
        # Whether what is given up has failed, as no policy lets it be.
        self.strict = not step_roster.node.gives_up

    def sent(self, pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
        return bare(pieces)

    def handle_reply(self, event: Replied) -> None:
        lease = self.book.leases[event.lease]
        self.order.at = lease.first - lease.begin, lease.partial
        if event.given_up:
            for index, attempts, when, why in event.given_up:
                self._call_given_up(lease, index, attempts, when, why)
            if self.strict:
                event = event._replace(given_up=())
        super().handle_reply(event)

    def handle_raised(self, event: Raised) -> bool:
        """Take in that a call failed, with no call known all of a lease; return whether the run goes on."""
        lease = None if event.lease is None else self.book.leases[event.lease]
        if lease is None or lease.finish:
            return False
        done = lease.first - lease.begin
        calls = range(done, done + lease.items) if event.call is None else [done + event.call]
        for index in calls:
            self.fail(lease, index, 0, event.error)
        return True

    def _call_given_up(self, lease: Lease, index: int, attempts: int, when: float, why: Any) -> None:
        """Take in that a worker has given up a call with one item."""
        if self.strict:
            self.fail(lease, index, attempts, why, when)
        elif not self._cancelled:
            # Whoever gets errors in the place of results is to know of it.
            origin = self._origin_of(lease, index)
            self.context.command(ItemFailed(origin, self.index, lease.begin + index, attempts, why, skipped=True))

    def _origin_of(self, lease: Lease, index: int) -> int:
        """Return the submitted item that a call of a lease works for."""
        return self.context.origins.root_of(lineages_of(lease.pieces)[index][0])

    def fail(self, lease: Lease, index: int, attempts: int, why: Any, when: float = 0.0) -> None:
        """Report the failure of a call with one item, the first time that something fails of what was submitted."""
        if self._cancelled:
            return
        context, origins = self.context, self.context.origins
        origin = self._origin_of(lease, index)
        if origins.drop(origin):
            number = lease.begin + index
            context.command(ItemFailed(origin, self.index, number, attempts, why))
            if origins.are_streamed:
                # A run gives up only so many.
                context.give_up(GaveUp(self.index, number, number, attempts, when, why), number + 1)
            else:
                self.step_roster.totals.failed += 1
            if not origins.is_alone(origin):
                context.purge()


class TracedReplicate(Replicate):
    """A ReplicatingFork: each branch gets lineages of its own, inside a scope where the branch is zipped."""

    context: TracedContext

    def __init__(self, node: ReplicateNode, context: TracedContext) -> None:
        super().__init__(node, context)
        # For each branch the zips of this fork that it passes, one after the other.
        self.zips: list[list[ScopedZip]] = []

    def pump(self) -> None:
        moved = False
        zips = {zipped for chain in self.zips for zipped in chain}
        while items := min(
            self.queue.items,
            *(output.free_capacity() for output in self.outputs),
            *(zipped.room for zipped in zips),
        ):
            if items < 0:
                break
            pieces = self.queue.take(items)
            branches = self._branches(lineages_of(pieces))
            for output, lineages in zip(self.outputs, branches, strict=True):
                output.push(_with_lineages(pieces, lineages), items, None)
            moved = True
        self.end_branches()
        if moved or self.sharing:
            self.wake_upstream()

    def _branches(self, entered: list[Lineage]) -> list[list[Lineage]]:
        """Return for each branch the lineages of what enters it, and count what is under way."""
        origins = self.context.origins
        branches: list[list[Lineage]] = [[] for _ in self.outputs]
        for lineage in entered:
            scopes: dict[ScopedZip, int] = {}
            under_way = 0
            for branch, chain in enumerate(self.zips):
                inside = lineage
                # From the last zip to the first, each is a part of what comes behind it.
                for zipped in reversed(chain):
                    if zipped not in scopes:
                        within = inside if len(chain) == 1 and zipped.covers_fork else (*inside, branch)
                        scopes[zipped] = zipped.open_scope(within)
                        if inside is lineage:
                            under_way += 1
                    inside = (scopes[zipped],)
                under_way += not chain
                branches[branch].append((*inside, branch))
            origins.add(lineage[0], under_way - 1)
        return branches


def _with_lineages(pieces: tuple[Piece, ...], lineages: list[Lineage]) -> tuple[Piece, ...]:
    """Return pieces with other lineages."""
    changed: list[Piece] = []
    begin = 0
    for traced, start, stop in pieces:
        end = begin + stop - start
        changed.append((Traced(traced.source, lineages[begin:end], start), start, stop))
        begin = end
    return tuple(changed)


class ScopedZip(Zip):
    """A zip that makes the rows of a scope when all that entered the fork has come, or has come to nothing.

    What comes has room here at all times; how many scopes are open at once has a bound.
    """

    context: TracedContext

    def __init__(self, node: ZipNode, context: TracedContext) -> None:
        super().__init__(node, context)
        self._most_scopes = max(1, min(node.bounds))
        self._scopes = 0
        # Whether a scope has settled since the nodes in front were woken.
        self._has_settled = False
        # How many branches and inner zips come here directly; and whether the whole fork does.
        self.parts = 0
        self.covers_fork = False
        # What has come of each open scope, by its port: the lineage, and where the item is.
        self._held: dict[int, list[list[tuple[Lineage, Any, int]]]] = {}
        # The scopes that have settled, and rows that wait for room.
        self._settled: list[tuple[Lineage, list[list[tuple[Lineage, Any, int]]]]] = []
        self._rows = Pieces()

    @property
    def room(self) -> int:
        """How many more scopes may be opened."""
        return self._most_scopes - self._scopes

    def open_scope(self, parent: Lineage) -> int:
        """Open the scope of an item that enters the fork."""
        self._scopes += 1
        scope = self.context.origins.open_scope(parent, self.parts, self._settle)
        self._held[scope] = [[] for _ in self.lanes]
        return scope

    def _settle(self, scope: int, parent: Lineage) -> None:
        """Take in that all of a scope has come; without a parent, nobody wants it."""
        self._scopes -= 1
        self._has_settled = True
        held = self._held.pop(scope)
        if parent:
            self._settled.append((parent, held))
        self.wake()

    def free_capacity(self, port: int, weighed: bool = True) -> int:
        return NO_BOUND

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        for traced, start, stop in pieces:
            for index, lineage in enumerate(traced.part(start, stop), start):
                scope = lineage[0]
                self._held[scope][port].append((lineage, traced.source, index))
                self.context.origins.add(scope, -1)

    def end(self, port: int) -> None:
        self.lanes[port].ended = True
        self.wake()

    def pump(self) -> None:
        if self._settled:
            self._make_rows()
        moved = False
        while (items := min(self._rows.items, self.output.free_capacity())) > 0:
            self.output.push(self._rows.take(items), items, None)
            moved = True
        if not self.ended and not self._rows.items and all(lane.ended for lane in self.lanes):
            self.ended = True
            self.output.end()
        # The fork may have waited for a scope to settle.
        if moved or self._has_settled:
            self._has_settled = False
            self.wake_upstream()
        if self._rows.items and self.output.free_capacity() < 1:
            self.output.node.request_flush()

    def _make_rows(self) -> None:
        """Weave the rows of what has settled since the last time."""
        origins = self.context.origins
        settled, self._settled = self._settled, []
        lanes: list[list[Piece]] = [[] for _ in self.lanes]
        lane_sizes: list[GroupSizes] = [[] for _ in self.lanes]
        lineages: list[Lineage] = []
        for parent, held in settled:
            rows = max(map(len, held))
            if parent[0] not in origins.dropped:
                for each, lane, sizes in zip(held, lanes, lane_sizes, strict=True):
                    append_groups(sizes, len(each), 1)
                    for _, source, index in sorted(each, key=_lineage_of):
                        _append(lane, source, index)
                lineages += [parent] if rows == 1 else [(*parent, row) for row in range(rows)]
                origins.add(parent[0], rows - 1)
            else:
                origins.add(parent[0], -1)
        if lineages:
            woven = Weave(tuple(map(tuple, lanes)), tuple(lane_sizes), zipped=True)
            self._rows.push(Traced(woven, lineages), len(lineages))

    def purge(self, origins: Origins) -> int:
        """Remove the rows that nobody wants any more."""
        return origins.purge(self._rows)

    def move(self) -> bool:
        return False

    def clear(self) -> None:
        super().clear()
        self._held.clear()
        self._settled.clear()
        self._rows.clear()

    def check(self) -> None:
        self._rows.check()
        assert len(self._held) == self._scopes <= self._most_scopes, "a zip has more scopes open than it may"


def _lineage_of(held: tuple[Lineage, Any, int]) -> Lineage:
    return held[0]


def _append(pieces: list[Piece], source: Any, index: int) -> None:
    """Add an item of a source to pieces, in the shortest form."""
    if pieces:
        last, start, stop = pieces[-1]
        if last is source and stop == index:
            pieces[-1] = (source, start, index + 1)
            return
    pieces.append((source, index, index + 1))


class TracedSink(Sink):
    """Hands out results with their lineages, and says which submitted items have settled."""

    context: TracedContext

    def __init__(self, node: SinkNode, context: TracedContext) -> None:
        super().__init__(node, context)
        # What came with the event at hand.
        self._arrived = Pieces()

    def push(self, port: int, pieces: tuple[Piece, ...], items: int, group_sizes: GroupSizes | None) -> None:
        self._arrived.extend(pieces, items)
        self.waiting += items
        self.wake()

    def pump(self) -> None:
        origins, items = self.context.origins, self._arrived.items
        pieces = self._arrived.take(items)
        lineages = lineages_of(pieces)
        origins.leave(lineages)
        settled = origins.take_settled()
        if items or settled:
            within = self._report_within_seconds()
            self.context.command(Deliver(bare(pieces), items, tuple(lineages), settled, within))

    def end(self, port: int) -> None:
        self.pump()
        self.ended = True
        self.context.command(Finish())

    def clear(self) -> None:
        self._arrived.clear()


def nodes_of(
    plan: Plan, rosters: dict[int, StepRoster], context: TracedContext, build: Callable[[Plan, int], Node]
) -> list[Node]:
    """Return the nodes of a plan that is `untracked`; `build` makes those that are the same as in any run."""
    nodes: list[Node] = []
    for index, node in enumerate(plan.nodes):
        match node:
            case StepNode():
                nodes.append(TracedStep(rosters[index], context))
            case ReplicateNode():
                nodes.append(TracedReplicate(node, context))
            case ZipNode():
                nodes.append(ScopedZip(node, context))
            case SinkNode():
                nodes.append(TracedSink(node, context))
            case _:
                nodes.append(build(plan, index))
    _connect_zips(plan, nodes)
    return nodes


def untracked(plan: Plan) -> Plan:
    """Return a plan none of whose forks is tracked, and none of whose steps keeps an order."""
    nodes: list[Any] = list(plan.nodes)
    for index, node in enumerate(nodes):
        if getattr(node, "tracked", False):
            nodes[index] = replace(node, tracked=False)
    return replace(plan, nodes=tuple(nodes), ordered=False)


def _connect_zips(plan: Plan, nodes: list[Node]) -> None:
    """Tell each ReplicatingFork which zips its branches come to, and each zip what comes to it."""
    for node in plan.nodes:
        if not isinstance(node, ReplicateNode):
            continue
        fork = nodes[node.index]
        assert isinstance(fork, TracedReplicate)
        fork.zips = [_zips_behind(plan, nodes, node, target.node) for target in node.to]
        inner = {chain[place] for chain in fork.zips for place in range(len(chain) - 1)}
        for zipped in {zipped for chain in fork.zips for zipped in chain}:
            directly = sum(1 for chain in fork.zips if chain and chain[0] is zipped)
            feeding = {chain[chain.index(zipped) - 1] for chain in fork.zips if zipped in chain[1:]}
            zipped.parts = directly + len(feeding)
            zipped.covers_fork = zipped not in inner and all(zipped in chain for chain in fork.zips)
            zipped.upstream.append(fork.wake)


def _zips_behind(plan: Plan, nodes: list[Node], fork: ReplicateNode, index: int) -> list[ScopedZip]:
    """Return the zips of a fork that lie behind a node, in their order."""
    zips: list[ScopedZip] = []
    while outputs := plan.nodes[index].outputs:
        node, running = plan.nodes[index], nodes[index]
        if isinstance(node, ZipNode) and node.fork == fork.index:
            assert isinstance(running, ScopedZip)
            zips.append(running)
        # All branches of a fork inside come to the same zips of this one.
        index = outputs[0].node
    return zips


def purge(node: Node, origins: Origins) -> None:
    """Remove from a node what nobody wants any more."""
    removed = 0
    match node:
        case Step():
            removed = origins.purge(node.intake.queue)
            node.intake.dropped += removed
        case Fork():
            removed = origins.purge(node.queue)
        case ScopedZip():
            removed = node.purge(origins)
        case Join():
            removed = sum([origins.purge(lane.pieces) for lane in node.lanes])
        case _:
            return
    if removed:
        node.wake()
        node.wake_upstream()
