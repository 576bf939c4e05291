"""The Plan of each shape of pipeline, node by node; and what holds for the Plan of any pipeline."""

from __future__ import annotations

import re
import warnings
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyor.errors import RuleError
from conveyor.graph.builder import Description
from conveyor.graph.drawing import draw
from conveyor.graph.plan import (
    PIPE_BYTES,
    BalanceNode,
    LeaveNode,
    MergeNode,
    Node,
    Plan,
    ReplicateNode,
    SinkNode,
    StepNode,
    Target,
    ZipNode,
)
from conveyor.stages import DEFAULT_MAXSIZE, BalancingFork, Join, Pipe, Processor, ReplicatingFork


def load(item):
    return item


def parse(item):
    return item


def train(item):
    return item


LOAD, PARSE, TRAIN = Processor(load), Processor(parse), Processor(train)
BATCH = Processor(train, batch=10)


def planned(*rows: Any, cores: int = 4, ordered: bool = True, memory: int | None = None) -> list[Node]:
    return list(plan_of(*rows, cores=cores, ordered=ordered, memory=memory).nodes)


def plan_of(*rows: Any, cores: int = 4, ordered: bool = True, memory: int | None = None) -> Plan:
    description = Description()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in rows:
            description.add(row if isinstance(row, tuple) else (row,))
        plan = description.plan(cores=cores, ordered=ordered, memory=memory)
    assert plan.ordered is ordered
    validated(plan)
    return plan


def step(
    index: int,
    processor: Processor,
    bound: int,
    to: int | Target,
    *,
    name: str | None = None,
    workers: int = 1,
    most: int | None = None,
    auto: bool = False,
    shared: bool = False,
    ordered: bool = True,
    size: int = PIPE_BYTES,
) -> StepNode:
    """A StepNode of one of the Processors above, which leads to the node or Target `to`."""
    name = name or processor.job.__name__
    to = Target(to) if isinstance(to, int) else to
    return StepNode(
        index,
        name,
        processor,
        workers,
        most if auto else workers,
        processor.batch,
        bound,
        size,
        shared,
        ordered,
        False,
        True,
        to,
    )


def sink(index: int, bound: int, size: int = PIPE_BYTES) -> SinkNode:
    return SinkNode(index, bound, size)


def replicating(index: int, bound: int, tracked: bool, to: tuple[Target, ...]) -> ReplicateNode:
    return ReplicateNode(index, bound, PIPE_BYTES, tracked, to)


def balancing(index: int, bound: int, unit: int, strict: bool, tracked: bool, to: tuple[Target, ...]) -> BalanceNode:
    return BalanceNode(index, bound, PIPE_BYTES, unit, strict, tracked, to)


def merge(index: int, fork: int, branches: Any, bounds: tuple[int, ...], tracked: bool, to: Target) -> MergeNode:
    return MergeNode(index, fork, branches, bounds, (PIPE_BYTES,) * len(bounds), tracked, to)


def zipped(index: int, fork: int, last_branch: int, bounds: tuple[int, ...], to: Target) -> ZipNode:
    return ZipNode(index, fork, last_branch, bounds, (PIPE_BYTES,) * len(bounds), to)


def targets(node: Node) -> tuple[Target, ...]:
    if isinstance(node, SinkNode):
        return ()
    return node.to if isinstance(node.to, tuple) else (node.to,)


def validated(plan: Plan) -> None:
    """Assert what holds for every Plan."""
    assert [node.index for node in plan.nodes] == list(range(len(plan.nodes)))
    assert isinstance(plan.nodes[0], StepNode) and isinstance(plan.nodes[-1], SinkNode)
    assert len({node.name for node in plan.steps}) == len(plan.steps)
    fed: dict[int, list[int]] = {}
    grouped = plan.grouped()
    assert all(node.ordered == (plan.ordered or node.index in grouped) for node in plan.steps)
    for node in plan.nodes:
        for target in targets(node):
            assert target.node > node.index
            fed.setdefault(target.node, []).append(target.port)
        if isinstance(node, MergeNode | ZipNode | LeaveNode):
            assert isinstance(plan.nodes[node.fork], ReplicateNode | BalanceNode) and node.fork < node.index
        if isinstance(node, MergeNode):
            fork = plan.nodes[node.fork]
            assert node.tracked == fork.tracked and len(node.bounds) == len(node.branches)
            assert len(node.bounds_bytes) == len(node.bounds)
            carried = [branch for branches in node.branches for branch in branches]
            assert carried == sorted(set(carried)) and carried[-1] < len(fork.to)
        if isinstance(node, ZipNode):
            assert plan.nodes[node.fork].tracked and isinstance(plan.nodes[node.fork], ReplicateNode)
        if isinstance(node, StepNode):
            assert node.workers >= 1 and node.bound >= 1 and node.bound_bytes >= 1
    for node in plan.nodes[1:]:
        if isinstance(node, MergeNode | ZipNode):
            assert sorted(fed[node.index]) == list(range(len(node.bounds)))
        else:
            assert fed[node.index] == [0]


def test_one_step():
    assert planned(LOAD) == [step(0, LOAD, DEFAULT_MAXSIZE, 1), sink(1, DEFAULT_MAXSIZE)]
    assert planned(LOAD, Pipe(7)) == [step(0, LOAD, 7, 1), sink(1, 7)]


def test_chain():
    assert planned(LOAD, Pipe(5), PARSE, Pipe(), Pipe(9), BATCH) == [
        step(0, LOAD, 5, 1),
        step(1, PARSE, 5, 2),
        step(2, BATCH, 9, 3),
        sink(3, 9),
    ]
    assert planned(LOAD, PARSE, ordered=False) == [
        step(0, LOAD, DEFAULT_MAXSIZE, 1, ordered=False),
        step(1, PARSE, DEFAULT_MAXSIZE, 2, ordered=False),
        sink(2, DEFAULT_MAXSIZE),
    ]


def test_bounds_in_bytes():
    assert planned(LOAD, Pipe(maxbytes=7), PARSE, Pipe(5, 2), Pipe(maxbytes=3), TRAIN) == [
        # The first pipe is like the one behind it, and the last like the one in front of it.
        step(0, LOAD, DEFAULT_MAXSIZE, 1, size=7),
        step(1, PARSE, DEFAULT_MAXSIZE, 2, size=7),
        step(2, TRAIN, 5, 3, size=3),
        sink(3, 5, 3),
    ]
    assert planned(LOAD, Pipe(maxbytes=7)) == [step(0, LOAD, DEFAULT_MAXSIZE, 1, size=7), sink(1, DEFAULT_MAXSIZE, 7)]
    for fork in (ReplicatingFork(2), BalancingFork(2)):
        plan = plan_of(LOAD, Pipe(5, 50), fork, (PARSE, TRAIN), (Pipe(6, 60), Pipe(7)), Join(), Processor(load))
        first, divided, one, other, joined, _, last, results = plan.nodes
        sizes = [node.bound_bytes for node in (first, divided, one, other)]
        assert sizes == [50] * 4 and one.shared and other.shared
        assert joined.bounds == (6, 7) and joined.bounds_bytes == (60, PIPE_BYTES)
        # What stands behind a Join without a Pipe of its own holds as much as the largest in front of it.
        assert last.shared and (last.bound, last.bound_bytes) == (7, PIPE_BYTES) and results.bound_bytes == PIPE_BYTES
        assert [plan.bytes_at(each.to) for each in (first, one, other, last)] == [50, 60, PIPE_BYTES, PIPE_BYTES]
    plan = plan_of(
        LOAD, Pipe(5, 50), ReplicatingFork(2), PARSE, (Pipe(6, 60), Pipe(7, 70)), Join(how="zip"), Pipe(8, 80)
    )
    assert plan.nodes[4].bounds_bytes == (60, 70) and plan.nodes[-1].bound_bytes == 80
    # The end of a fork holds nothing itself.
    ends = [node for node in plan.nodes if isinstance(node, LeaveNode)]
    assert [plan.bytes_at(Target(node.index)) for node in ends] == [80]


def test_pipes_share_the_memory():
    mebibyte = 1024 * 1024
    rows = (LOAD, Pipe(), PARSE, Pipe(maxbytes=5), TRAIN)
    for memory, size in [
        (None, PIPE_BYTES),
        (1 << 40, PIPE_BYTES),
        # An eighth for four pipes: in front of each step, and the results.
        (512 * mebibyte, 16 * mebibyte),
        (64 * mebibyte, 2 * mebibyte),
        (10 * mebibyte, mebibyte),
    ]:
        plan = plan_of(*rows, memory=memory)
        assert plan.pipes == 4
        assert [node.bound_bytes for node in plan.nodes] == [size, size, 5, 5], memory
        assert [node.bound for node in plan.nodes] == [DEFAULT_MAXSIZE] * 4
    plan = plan_of(LOAD, Pipe(), ReplicatingFork(3), PARSE, Pipe(), Join(), memory=512 * mebibyte)
    # In front of the first step and the fork, three in front of the Join, and the results; the branches have none.
    assert plan.pipes == 6
    assert {plan.bytes_at(Target(node.index)) for node in plan.nodes} == {64 * mebibyte // 6}


def test_workers():
    four, auto = Processor(load, workers=4), Processor(load, workers="auto")
    assert planned(four, Pipe(5), auto, cores=3) == [
        step(0, four, 5, 1, workers=4),
        step(1, auto, 5, 2, name="load-2", auto=True),
        sink(2, 5),
    ]


def workers_of(*rows, auto=False):
    """The least and the greatest number of workers of each step."""
    description = Description()
    for row in rows:
        description.add(row if isinstance(row, tuple) else (row,))
    return [(step.workers, step.most) for step in description.plan(cores=4, ordered=True, auto=auto).steps]


class Stateful(Processor):
    def process(self, item):
        return item


def test_a_bound_of_workers():
    bounded = Processor(parse, workers="auto", max_workers=3)
    assert workers_of(LOAD, Pipe(), bounded, Pipe(), Processor(train, workers="auto")) == [(1, 1), (1, 3), (1, None)]
    assert workers_of(Processor(parse, workers="auto", max_workers=1)) == [(1, 1)]
    for fork, expected in ((BalancingFork(), 3), (BalancingFork(max=2), 2), (BalancingFork(max=9), 3)):
        assert workers_of(LOAD, Pipe(), fork, bounded, Pipe(), Join()) == [(1, 1), (1, expected)]
    assert "max_workers=3" in draw_of(bounded)


def draw_of(*elements):
    description = Description()
    for each in elements:
        description.add((each,))
    return draw(description)


def test_a_bound_that_contradicts_a_number():
    for made, words in (
        (lambda: Processor(parse, workers=2, max_workers=3), "workers=2 .* max_workers=3"),
        (lambda: Processor(parse, max_workers=0), "max_workers must be 1 or more"),
        (lambda: workers_of(Processor(parse, max_workers=3)), "'parse' has max_workers=3, and the number .* is 1"),
        (
            lambda: workers_of(LOAD, Pipe(), BalancingFork(2), Processor(parse, max_workers=3), Pipe(), Join()),
            "'parse' has max_workers=3, and the number .* is 2",
        ),
        (
            lambda: workers_of(LOAD, Pipe(), BalancingFork(min=4), Processor(parse, max_workers=3), Pipe(), Join()),
            "'parse' has max_workers=3, and its BalancingFork has min=4",
        ),
    ):
        try:
            made()
        except ValueError as error:
            assert re.search(words, str(error)), error
        else:
            raise AssertionError(words)


def test_all_plain_callables_may_follow_the_load():
    rows = (
        LOAD,
        Pipe(),
        Processor(parse, workers=2),
        Pipe(),
        Stateful(),
        Pipe(),
        Processor(train, max_workers=3),
        Pipe(),
    )
    rows += (ReplicatingFork(2), (Processor(parse), Stateful(workers="auto")), Pipe(), Join(), Pipe())
    rows += (BalancingFork(2), Processor(parse), Pipe(), Join(), Pipe(), Processor(parse, workers=1))
    assert workers_of(*rows, auto=True) == [
        *((1, None), (2, 2), (1, 1), (1, 3), (1, None), (1, None), (2, 2), (1, 1)),
    ]


def test_a_step_that_has_something_to_say_at_the_end():
    class Count(Processor):
        def process(self, item):
            return item

        def finish(self):
            return 0

    assert [node.finishes for node in planned(LOAD, Pipe(), Count(), Pipe(), PARSE)[:3]] == [False, True, False]


def test_names_are_unique():
    other = Processor(load, name="load-2")
    nodes = planned(LOAD, Pipe(), other, Pipe(), LOAD, Pipe(), LOAD)
    names = [node.name for node in nodes if isinstance(node, StepNode)]
    assert names == ["load", "load-2", "load-3", "load-4"]


def test_a_fork_decided_at_run_time_leaves_no_node():
    assert planned(LOAD, Pipe(5), BalancingFork(), PARSE, Pipe(6), Join(), TRAIN) == [
        step(0, LOAD, 5, 1),
        step(1, PARSE, 5, 2, auto=True),
        step(2, TRAIN, 6, 3),
        sink(3, 6),
    ]
    assert planned(LOAD, Pipe(5), BalancingFork(), Pipe(8), PARSE, Pipe(6), TRAIN, Pipe(6), Join(), Pipe(7), LOAD) == [
        step(0, LOAD, 8, 1),
        step(1, PARSE, 8, 2, auto=True),
        step(2, TRAIN, 6, 3, auto=True),
        step(3, LOAD, 7, 4, name="load-2"),
        sink(4, 7),
    ]
    for fork, workers, most in [
        (BalancingFork(max=2), 1, 2),
        (BalancingFork(min=6), 6, None),
        (BalancingFork(min=2, max=3), 2, 3),
        (BalancingFork(min=3, max=3), 3, 3),
    ]:
        node = planned(LOAD, Pipe(5), fork, PARSE, cores=4)[1]
        assert (node.workers, node.most, node.auto) == (workers, most, workers != most)


def test_equal_branches_become_one_step():
    collapsed = [step(0, LOAD, 5, 1), step(1, PARSE, 5, 2, workers=3), step(2, TRAIN, 6, 3), sink(3, 6)]
    assert planned(LOAD, Pipe(5), BalancingFork(3), PARSE, Pipe(6), Join(), TRAIN) == collapsed
    assert planned(LOAD, Pipe(5), BalancingFork(3), PARSE, Pipe(6), Join(3), TRAIN) == collapsed
    assert planned(LOAD, Pipe(5), BalancingFork(3), PARSE, (Pipe(6), Pipe(2), Pipe()), Join(3), TRAIN) == collapsed
    assert planned(LOAD, Pipe(5), BalancingFork(3), PARSE, Pipe(6)) == [*collapsed[:2], sink(2, 6)]
    assert planned(LOAD, Pipe(5), BalancingFork(2), BATCH, Pipe(6), Join(), Pipe(7), PARSE) == [
        step(0, LOAD, 5, 1),
        step(1, BATCH, 5, 2, workers=2),
        step(2, PARSE, 7, 3),
        sink(3, 7),
    ]


def test_equal_branches_inside_a_fork():
    assert planned(LOAD, Pipe(5), ReplicatingFork(2), Pipe(4), BalancingFork(2), PARSE, Pipe(6), Join(4)) == [
        step(0, LOAD, 5, 1),
        replicating(1, 5, True, (Target(2), Target(3))),
        step(2, PARSE, 4, Target(4, 0), workers=2),
        step(3, PARSE, 4, Target(4, 1), workers=2, name="parse-2"),
        merge(4, 1, ((0,), (1,)), (6, 6), True, Target(5)),
        LeaveNode(5, 1, False, Target(6)),
        sink(6, 6),
    ]


def test_unequal_branches_stay():
    def branches(*rows: Any, unit: int = 1, strict: bool = False) -> None:
        nodes = planned(LOAD, Pipe(5), BalancingFork(2), *rows, Pipe(6), Join())
        assert (nodes[1].bound, nodes[1].unit, nodes[1].strict, nodes[1].tracked) == (5, unit, strict, True)
        assert isinstance(nodes[1], BalanceNode)

    branches((PARSE, TRAIN))
    branches(PARSE, Pipe(), TRAIN)
    branches(Pipe(3), PARSE)
    branches(Processor(parse, workers=2))
    branches((PARSE, Pipe()))
    branches((BATCH, Processor(parse, batch=10)), unit=10)
    branches(BATCH, Pipe(), TRAIN, unit=10)
    branches((BATCH, Processor(parse, batch=5)), strict=True)
    branches((BATCH, PARSE), strict=True)
    branches((BATCH, Pipe()), strict=True)
    branches(PARSE, Pipe(), BATCH, strict=True)
    branches(BATCH, Pipe(), BATCH, unit=10, strict=True)
    branches(Pipe(), BalancingFork(), BATCH, Pipe(), Join(), unit=10)
    branches(Pipe(), BalancingFork(3), BATCH, Pipe(), Join(), unit=10)
    branches(Pipe(), ReplicatingFork(3), BATCH, Pipe(), Join(), strict=True)
    assert planned(LOAD, Pipe(5), BalancingFork(2), (PARSE, TRAIN), Pipe(6), Join(), ordered=False) == [
        step(0, LOAD, 5, 1, ordered=False),
        balancing(1, 5, 1, False, False, (Target(2), Target(3))),
        step(2, PARSE, 5, Target(4, 0), shared=True, ordered=False),
        step(3, TRAIN, 5, Target(4, 1), shared=True, ordered=False),
        merge(4, 1, ((0,), (1,)), (6, 6), False, Target(5)),
        LeaveNode(5, 1, False, Target(6)),
        sink(6, 6),
    ]
    assert len(planned(LOAD, Pipe(5), BalancingFork(2), PARSE, Pipe(), Join(1), Pipe(), Join(2))) > 4


def test_a_merge_of_replicas():
    assert planned(LOAD, Pipe(5), ReplicatingFork(2), (PARSE, TRAIN), (Pipe(6), Pipe(7)), Join(2), BATCH) == [
        step(0, LOAD, 5, 1),
        replicating(1, 5, True, (Target(2), Target(3))),
        step(2, PARSE, 5, Target(4, 0), shared=True),
        step(3, TRAIN, 5, Target(4, 1), shared=True),
        merge(4, 1, ((0,), (1,)), (6, 7), True, Target(5)),
        LeaveNode(5, 1, False, Target(6)),
        step(6, BATCH, 7, 7, shared=True, name="train-2"),
        sink(7, 7),
    ]


def test_open_ends_are_merged_like_a_join():
    rows = [LOAD, Pipe(5), ReplicatingFork(2), (PARSE, TRAIN), Pipe(6)]
    assert planned(*rows) == planned(*rows, Join())
    assert planned(LOAD, Pipe(5), ReplicatingFork(2), Pipe(6), ReplicatingFork(2), PARSE, Pipe(3)) == planned(
        LOAD, Pipe(5), ReplicatingFork(2), Pipe(6), ReplicatingFork(2), PARSE, Pipe(3), Join(4)
    )
    # Where no Pipe stands at the end of a branch, one is put in.
    assert planned(LOAD, Pipe(5), ReplicatingFork(1)) == [
        step(0, LOAD, 5, 1),
        replicating(1, 5, True, (Target(2),)),
        merge(2, 1, ((0,),), (DEFAULT_MAXSIZE,), True, Target(3)),
        LeaveNode(3, 1, False, Target(4)),
        sink(4, DEFAULT_MAXSIZE),
    ]


def test_a_zip_of_replicas():
    for ordered in (True, False):
        assert planned(
            LOAD, Pipe(5), ReplicatingFork(2), (PARSE, TRAIN), Pipe(6), Join(2, how="zip"), Pipe(9), ordered=ordered
        ) == [
            step(0, LOAD, 5, 1, ordered=ordered),
            replicating(1, 5, True, (Target(2), Target(3))),
            step(2, PARSE, 5, Target(4, 0), shared=True),
            step(3, TRAIN, 5, Target(4, 1), shared=True),
            zipped(4, 1, 1, (6, 6), Target(5)),
            LeaveNode(5, 1, False, Target(6)),
            sink(6, 9),
        ]


def test_part_joins():
    assert planned(LOAD, Pipe(5), ReplicatingFork(4), PARSE, Pipe(6), (Join(2), Pipe(7)), Pipe(8), Join(3))[6:] == [
        merge(6, 1, ((0,), (1,)), (6, 6), True, Target(7, 0)),
        merge(7, 1, ((0, 1), (2,), (3,)), (8, 8, 8), True, Target(8)),
        LeaveNode(8, 1, False, Target(9)),
        sink(9, 8),
    ]
    assert planned(LOAD, Pipe(5), ReplicatingFork(4), Pipe(6), Join(2, how="zip"), Pipe(), Join(), ordered=False) == [
        step(0, LOAD, 5, 1, ordered=False),
        replicating(1, 5, True, (Target(2, 0), Target(2, 1), Target(3, 0), Target(3, 1))),
        zipped(2, 1, 1, (6, 6), Target(4, 0)),
        zipped(3, 1, 3, (6, 6), Target(4, 1)),
        merge(4, 1, ((0, 1), (2, 3)), (DEFAULT_MAXSIZE, DEFAULT_MAXSIZE), True, Target(5)),
        LeaveNode(5, 1, False, Target(6)),
        sink(6, DEFAULT_MAXSIZE),
    ]


NESTED = [LOAD, Pipe(5), ReplicatingFork(2), Pipe(4), ReplicatingFork(2), PARSE, (Pipe(6), Pipe(7), Pipe(8), Pipe(9))]
NESTED_FRONT = [
    step(0, LOAD, 5, 1),
    replicating(1, 5, True, (Target(2), Target(3))),
    replicating(2, 4, True, (Target(4), Target(5))),
    replicating(3, 4, True, (Target(6), Target(7))),
]


def test_joins_level_by_level():
    assert planned(*NESTED, Join(2), Pipe(3), TRAIN, Pipe(2), Join(2))[8:] == [
        merge(8, 2, ((0,), (1,)), (6, 7), True, Target(9)),
        LeaveNode(9, 2, True, Target(12)),
        merge(10, 3, ((0,), (1,)), (8, 9), True, Target(11)),
        LeaveNode(11, 3, True, Target(13)),
        step(12, TRAIN, 3, Target(14, 0)),
        step(13, TRAIN, 3, Target(14, 1), name="train-2"),
        merge(14, 1, ((0,), (1,)), (2, 2), True, Target(15)),
        LeaveNode(15, 1, False, Target(16)),
        sink(16, 2),
    ]


def test_a_merge_over_two_levels():
    assert planned(*NESTED, Join(4)) == [
        *NESTED_FRONT,
        step(4, PARSE, 4, Target(8, 0), shared=True),
        step(5, PARSE, 4, Target(8, 1), shared=True, name="parse-2"),
        step(6, PARSE, 4, Target(10, 0), shared=True, name="parse-3"),
        step(7, PARSE, 4, Target(10, 1), shared=True, name="parse-4"),
        merge(8, 2, ((0,), (1,)), (6, 7), True, Target(9)),
        LeaveNode(9, 2, True, Target(12, 0)),
        merge(10, 3, ((0,), (1,)), (8, 9), True, Target(11)),
        LeaveNode(11, 3, True, Target(12, 1)),
        merge(12, 1, ((0,), (1,)), (7, 9), True, Target(13)),
        LeaveNode(13, 1, False, Target(14)),
        sink(14, 9),
    ]


def test_a_zip_over_two_levels():
    assert planned(*NESTED, Join(4, how="zip")) == [
        *NESTED_FRONT,
        step(4, PARSE, 4, 8, shared=True),
        step(5, PARSE, 4, 9, shared=True, name="parse-2"),
        step(6, PARSE, 4, 10, shared=True, name="parse-3"),
        step(7, PARSE, 4, 11, shared=True, name="parse-4"),
        LeaveNode(8, 2, True, Target(12, 0)),
        LeaveNode(9, 2, True, Target(12, 1)),
        LeaveNode(10, 3, True, Target(12, 2)),
        LeaveNode(11, 3, True, Target(12, 3)),
        zipped(12, 1, 1, (6, 7, 8, 9), Target(13)),
        LeaveNode(13, 1, False, Target(14)),
        sink(14, 9),
    ]


def test_without_order_only_zips_are_tracked_and_what_is_in_them():
    nodes = planned(
        LOAD,
        Pipe(5),
        BalancingFork(2),
        Pipe(),
        ReplicatingFork(2),
        Pipe(),
        BalancingFork(2),
        Pipe(),
        PARSE,
        Pipe(),
        Join(),
        Pipe(),
        Join(how="zip"),
        Pipe(),
        Join(),
        ordered=False,
    )
    tracked = [(type(node).__name__, node.tracked) for node in nodes if hasattr(node, "tracked")]
    assert tracked == [
        ("BalanceNode", False),
        *[("ReplicateNode", True)] * 2,
        *[("BalanceNode", True)] * 4,
        *[("MergeNode", True), ("LeaveNode", True)] * 4,
        *[("LeaveNode", False)] * 2,
        ("MergeNode", False),
        ("LeaveNode", False),
    ]
    assert [node.ordered for node in nodes if isinstance(node, StepNode)] == [False] + [True] * 8


def test_leaving_into_a_fork_without_a_node():
    nodes = planned(LOAD, Pipe(5), BalancingFork(), Pipe(), ReplicatingFork(2), PARSE, Pipe(), Join(), TRAIN)
    assert nodes[5] == LeaveNode(5, 1, False, Target(6))
    assert [node.auto for node in nodes if isinstance(node, StepNode)] == [False, True, True, True]


ELEMENTS = st.one_of(
    st.sampled_from([LOAD, PARSE, BATCH, Processor(parse, workers="auto"), Pipe(), Pipe(3)]),
    st.builds(ReplicatingFork, st.integers(1, 4)),
    st.builds(BalancingFork, st.integers(1, 4)),
    st.builds(BalancingFork, max=st.none() | st.integers(1, 3)),
    st.builds(Join, st.none() | st.integers(1, 6)),
    st.builds(lambda n: Join(n, how="zip"), st.none() | st.integers(1, 4)),
)
ROWS = st.lists(
    st.lists(ELEMENTS, min_size=1, max_size=4).map(tuple) | ELEMENTS.map(lambda element: (element,)), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.booleans())
def test_any_pipeline_has_a_plan_and_a_picture(rows, ordered):
    description = Description()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        description.add((LOAD,))
        for row in rows:
            before = description.layout
            try:
                description.add(row)
            except RuleError:
                assert description.layout is before
            if len(description.layout.lanes) > 50:
                break
        validated(description.plan(cores=2, ordered=ordered))
        assert description.code("") == "".join(
            f".add({', '.join(map(repr, each.elements))})" for each in description.layout.additions
        )
    picture = draw(description).split("\n")
    assert sum(line.endswith("  results") for line in picture) == 1
    assert picture[-1].count("▼") == len(description.layout.lanes)
