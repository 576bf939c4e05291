"""Where elements may stand: each rule, what it lets through, what it refuses, with which words and at which line."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from functools import partial
from typing import Any

from conveyor.errors import ConveyorError, ImplicitJoinWarning, ImplicitPipeWarning, RuleError
from conveyor.graph.builder import Description
from conveyor.graph.layout import one_pipe
from conveyor.pipeline import Pipeline
from conveyor.stages import BalancingFork, Element, Join, Pipe, Processor, ReplicatingFork


def load(item):
    return item


class Twice:
    def __call__(self, item):
        return 2 * item


class Count(Processor):
    def process(self, item):
        return item


P = Processor(load)


def described(*rows: Any) -> Description:
    """A description of `rows`, each an element or a tuple of them; a Pipe that had to be put in is an error."""
    description = Description()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in rows:
            description.add(row if isinstance(row, tuple) else (row,))
    return description


def lanes(*rows: Any) -> list[tuple[tuple[int, ...], ...]]:
    """The branches that each open lane of `rows` carries, outermost fork first."""
    return [tuple(each.branches for each in lane.enclosing) for lane in described(*rows).layout.lanes]


def broken(rule: int, description: Description, *elements: object) -> str:
    """The message of the RuleError of adding `elements`, which must leave everything as it was."""
    before = description.layout
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            description.add(elements)
    except RuleError as error:
        assert error.rule == rule, error
        assert description.layout is before
        return str(error)
    raise AssertionError(f"{elements} were added to {description!r}")


def put_in(description: Description, *elements: object) -> str:
    """The message of the one warning of adding `elements`, which points at the caller's line."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        description.add(elements, stacklevel=2)
    (warning,) = caught
    assert warning.category is ImplicitPipeWarning
    assert (warning.filename, warning.lineno) == (__file__, frame.f_back.f_lineno)
    return str(warning.message)


def test_rule_1_everything_is_an_element():
    start = described(P)
    for value, remedy in [
        (load, "wrap it: Processor(load)"),
        (len, "wrap it: Processor(len)"),
        (lambda item: item, "wrap it: Processor(...)"),
        (Count, "Count is the class; add the instance, Count(...)"),
        (Pipe, "Pipe is the class"),
        (Join, "Join is the class"),
        (Element(), "add one of Processor, Pipe"),
        (None, "None is not an element"),
        (3, "3 is not an element"),
        ([Pipe()], "[Pipe()] is not an element"),
        ([P, P], "pass its elements one by one, as in add(*elements)"),
        (Element, "add one of Processor, Pipe"),
        (str.strip, "wrap it: Processor(str.strip)"),
        (", ".join, "wrap it: Processor(', '.join)"),
        (partial(pow, 2), "wrap it: Processor(partial(pow, 2))"),
        (Twice(), "wrap it: Processor(Twice())"),
        (list(range(10**6)), "[0, 1, 2, 3, 4, 5, ...] is not an element"),
    ]:
        assert remedy in broken(1, start, value)
    assert "Processor(load)" in broken(1, Description(), load)
    assert "3" in broken(1, described(P, Pipe(), ReplicatingFork(2)), P, 3)


def test_a_pipeline_is_neither_copied_nor_pickled():
    # A copy would share the steps, and what is added to one would be in the other.
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        try:
            way(Pipeline().add(P))
        except TypeError as error:
            assert "with a function that returns it" in str(error)
        else:
            raise AssertionError(way)


def test_rule_2_a_processor_first():
    assert lanes(P) == lanes(Count()) == [()]
    for element in (Pipe(), ReplicatingFork(2), BalancingFork(), Join()):
        message = broken(2, Description(), element)
        assert repr(element) in message and "add a Processor first" in message
    assert "2 elements for 1 open branch" in broken(5, Description(), P, P)
    assert "0 elements for 1 open branch" in broken(5, Description())


def test_rule_3_a_pipe_is_put_in_before_a_processor():
    for rows in (
        [P, Pipe(), P],
        [P, Pipe(), ReplicatingFork(2), P],
        [P, Pipe(), BalancingFork(), P, Pipe(), Join(), P],
    ):
        described(*rows)
    description = described(P)
    message = put_in(description, P)
    assert (
        "no Pipe in front of Processor(load)" in message
        and "add Pipe() before it" in message
        and "branches" not in message
    )
    assert repr(description) == "Pipeline().add(Processor(load)).add(Processor(load))"
    branches = described(P, Pipe(), ReplicatingFork(4), P)
    assert "on 4 branches" in put_in(branches, P)
    assert "on 2 branches" in put_in(branches, P, Pipe())


def test_rule_4_a_pipe_is_put_in_before_forks_and_joins():
    assert "no Pipe in front of ReplicatingFork(2)" in put_in(described(P), ReplicatingFork(2))
    assert "no Pipe in front of BalancingFork()" in put_in(described(P), BalancingFork())
    assert "on 2 branches" in put_in(described(P, Pipe(), ReplicatingFork(2)), ReplicatingFork(2))
    assert "on 2 branches" in put_in(described(P, Pipe(), ReplicatingFork(2)), Join(2))
    assert "branches" not in put_in(described(P, Pipe(), ReplicatingFork(2), (Pipe(), P)), Join())
    joined = described(P, Pipe(), ReplicatingFork(2), P, Pipe(), Join(2))
    assert "no Pipe in front of ReplicatingFork(2)" in put_in(joined, ReplicatingFork(2))


def test_warnings_as_errors_leave_everything_as_it_was():
    for element in (P, ReplicatingFork(2), BalancingFork()):
        description = described(P)
        before = description.layout
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                description.add((element,))
            except ImplicitPipeWarning:
                pass
            else:
                raise AssertionError(f"{element} was added")
        assert description.layout is before
        description.add((Pipe(),))
        description.add((element,))


def test_a_bad_processor_leaves_everything_as_it_was():
    description, count = described(P, Pipe()), Count()
    count.batch = 0
    before = description.layout
    try:
        description.add((count,))
    except ValueError as error:
        assert "batch" in str(error)
    assert description.layout is before


def test_rule_5_one_each_copies_and_groups():
    fork = [P, Pipe(), ReplicatingFork(2)]
    assert lanes(*fork) == lanes(*fork, (P, P)) == lanes(*fork, P) == [((0,),), ((1,),)]
    nested = [*fork, Pipe(), ReplicatingFork(3)]
    six = [((outer,), (inner,)) for outer in (0, 1) for inner in (0, 1, 2)]
    for count in (1, 2, 3, 6):
        assert lanes(*nested, (P,) * count) == six
    message = broken(5, described(*nested), *[P] * 4)
    assert "4 elements for 6 open branches" in message and "divides 6 or 2, the number of forks" in message
    assert "5 elements for 6" in broken(5, described(*nested), *[P] * 5)
    assert "2 elements for 1 open branch: add one element, or a fork first" in broken(5, described(P, Pipe()), P, P)
    assert "3 elements for 2" in broken(5, described(*fork), P, P, P)


def test_rule_5_groups_follow_the_forks():
    description = described(P, Pipe(), ReplicatingFork(2), Pipe(), (ReplicatingFork(2), ReplicatingFork(3)))
    one, other = Processor(load), Processor(load)
    description.add((one, other))
    processors = [operation.processor for operation in description.layout.operations[4:]]
    assert [processor is one for processor in processors] == [True, True, False, False, False]
    even = described(P, Pipe(), ReplicatingFork(4))
    even.add((one, other))
    assert [operation.processor is one for operation in even.layout.operations[2:]] == [True, True, False, False]
    # The lanes of the outer fork do not stand together, so that it counts for nothing.
    torn = described(P, Pipe(), ReplicatingFork(3), Pipe(), (Pipe(), ReplicatingFork(2), Pipe()))
    torn.add((one, other))
    assert [operation.processor is one for operation in torn.layout.operations[3:]] == [True, True, False, False]


def test_rule_5_only_pipe_mixes():
    fork = described(P, Pipe(), ReplicatingFork(2), Pipe())
    for pair in [(P, ReplicatingFork(2)), (ReplicatingFork(2), BalancingFork(2)), (P, Join(1))]:
        message = broken(5, fork, *pair)
        assert "only Pipe mixes" in message and type(pair[1]).__name__ in message
    described(P, Pipe(), ReplicatingFork(2), Pipe(), (P, Count()))
    for element in (P, ReplicatingFork(2), BalancingFork(2), Join(1)):
        described(P, Pipe(), ReplicatingFork(2), Pipe(), (element, Pipe()))
    assert "3 elements for 2" in broken(5, fork, P, Pipe(), P)


def test_rule_5_a_fork_decided_at_run_time_is_one_branch():
    auto = [P, Pipe(), BalancingFork()]
    assert lanes(*auto) == lanes(*auto, P) == [((0,),)]
    message = broken(5, described(*auto), P, P)
    assert "2 elements for 1 open branch: add one element; BalancingFork() opens one branch" in message
    assert "BalancingFork(2)" in message
    assert lanes(*auto, P, Pipe(), Join()) == [()]
    described(P, Pipe(), ReplicatingFork(2), Pipe(), BalancingFork(max=3), (P, P))


def test_rule_6_whole_forks():
    fork = [P, Pipe(), ReplicatingFork(2), P, Pipe()]
    assert lanes(*fork, Join(2)) == lanes(*fork, Join()) == [()]
    nested = [*fork, ReplicatingFork(3), P, Pipe()]
    assert lanes(*nested, Join(3)) == lanes(*nested, Join()) == lanes(*nested, (Join(3), Join(3))) == [((0,),), ((1,),)]
    assert lanes(*nested, Join(6)) == lanes(*nested, Join(), Pipe(), Join()) == [()]
    assert lanes(*nested, (Join(), Pipe())) == [((0,),), ((1,), (0,)), ((1,), (1,)), ((1,), (2,))]
    deep = [*fork, ReplicatingFork(2), Pipe(), ReplicatingFork(2), Pipe()]
    assert lanes(*deep, Join(2)) == [((0,), (0,)), ((0,), (1,)), ((1,), (0,)), ((1,), (1,))]
    assert lanes(*deep, Join(4)) == [((0,),), ((1,),)]
    assert lanes(*deep, Join(8)) == [()]
    assert lanes(P, Pipe(), ReplicatingFork(1), Pipe(), Join(1)) == [()]
    assert lanes(P, Pipe(), ReplicatingFork(1), Pipe(), ReplicatingFork(1), Pipe(), Join(1)) == [((0,),)]


def test_rule_6_an_even_part():
    four = [P, Pipe(), ReplicatingFork(4), P, Pipe()]
    assert lanes(*four, Join(2)) == [((0, 1),), ((2, 3),)]
    assert lanes(*four, Join(1)) == [((0,),), ((1,),), ((2,),), ((3,),)]
    assert lanes(*four, (Join(2), Pipe())) == [((0, 1),), ((2,),), ((3,),)]
    assert lanes(*four, Join(2), Pipe(), Join(2)) == lanes(*four, Join(2), Pipe(), Join()) == [()]
    assert lanes(*four, (Join(), Join())) == [((0, 1),), ((2, 3),)]
    halves = [P, Pipe(), ReplicatingFork(4), Pipe(), ReplicatingFork(2), Pipe()]
    assert lanes(*halves, Join(4)) == [((0, 1),), ((2, 3),)]
    message = broken(6, described(P, Pipe(), ReplicatingFork(3), Pipe()), Join(2))
    assert "Join(2) on 3 open branches" in message and "2 does not divide 3" in message
    assert "or a number that divides 3" in message
    assert "Join(3) on 2 open branches" in broken(6, described(P, Pipe(), ReplicatingFork(2), Pipe()), Join(3))


def test_rule_6_no_straddling():
    six = [P, Pipe(), ReplicatingFork(2), Pipe(), ReplicatingFork(3), Pipe()]
    message = broken(6, described(*six), Join(2))
    assert "covers 2 of the 3 open branches of ReplicatingFork(3)" in message and "not an even part" in message
    parts = [P, Pipe(), ReplicatingFork(3), Pipe(), ReplicatingFork(4), Pipe()]
    message = broken(6, described(*parts), Join(6))
    assert "covers 2 of the 4 open branches of ReplicatingFork(4) and branches of another fork" in message
    mixed = [P, Pipe(), ReplicatingFork(2), Pipe(), (ReplicatingFork(3), Pipe()), Pipe()]
    message = broken(6, described(*mixed), Join(2))
    # Not Join(3), which does not divide what is open.
    assert "covers 2 of the 3" in message and "Join(3)" not in message and "use Join() for all" in message
    assert lanes(*mixed, Join(4)) == [()]
    # Two of the three branches of the outer fork, each whole, are no even part of it.
    uneven = [P, Pipe(), ReplicatingFork(3), Pipe(), (ReplicatingFork(2), Pipe(), Pipe()), Pipe()]
    assert lanes(*uneven, Join(4)) == lanes(*uneven, (Join(), Pipe()), Pipe(), Join(3)) == [()]
    assert "covers 2 of the 3 open branches of ReplicatingFork(3)" in broken(6, described(*uneven), Pipe(), Join(2))


def test_rules_5_and_6_joins_as_wide_as_all_branches():
    # Together they take all, so the parts of a fork need not be even ones.
    three = [P, Pipe(), ReplicatingFork(3), Pipe()]
    assert lanes(*three, (Pipe(), Join(2))) == [((0,),), ((1, 2),)]
    assert lanes(*three, (Join(2), Pipe()), Pipe(), Join()) == [()]
    six = [P, Pipe(), BalancingFork(6), Pipe()]
    assert lanes(*six, (Join(2), Join(4))) == [((0, 1),), ((2, 3, 4, 5),)]
    assert lanes(*six, (Pipe(), Join(3), Pipe(), Join(1))) == [((0,),), ((1, 2, 3),), ((4,),), ((5,),)]
    nested = [P, Pipe(), ReplicatingFork(2), Pipe(), (ReplicatingFork(2), ReplicatingFork(4)), Pipe()]
    assert lanes(*nested, (Join(2), Join(4))) == lanes(*nested, (Join(), Join())) == [((0,),), ((1,),)]
    # A Pipe is put in, where one is missing, on the branches of the Joins alone.
    assert "on 2 branches" in put_in(described(P, Pipe(), ReplicatingFork(3), P), Pipe(), Join(2))
    for elements in ((Join(2), Join(2)), (Join(2), Join(5)), (Join(2), Pipe(), Pipe(), Pipe(), Pipe(), Pipe())):
        assert "Join(2)" in broken(6, described(*six), *elements)
    assert "these take 4" in broken(5, described(P, Pipe(), ReplicatingFork(5), Pipe()), Join(2), Join(2))
    # What is a part of one fork and a part of another is none of either.
    assert "branches of another fork" in broken(6, described(*nested), Join(3), Join(3))


def test_rule_6_join_without_a_number():
    # Branches of a fork that has another one open within are left alone, and need no Pipe.
    description = described(P, Pipe(), ReplicatingFork(3), Pipe(), (ReplicatingFork(2), Pipe(), Pipe()), P)
    assert "on 2 branches" in put_in(description, Join())
    assert [len(lane.enclosing) for lane in description.layout.lanes] == [1, 1, 1]
    waiting = [P, Pipe(), ReplicatingFork(2), Pipe(), (ReplicatingFork(2), Pipe()), Pipe()]
    assert "open forks within" in broken(6, described(*waiting), Pipe(), Join())


def test_rule_6_no_open_fork():
    for join in (Join(), Join(1), Join(2)):
        assert "no fork is open" in broken(6, described(P, Pipe()), join)
    assert "no fork is open" in broken(6, described(P, Pipe(), ReplicatingFork(2), Pipe(), Join(2), Pipe()), Join())


def test_rule_6_zip_needs_a_replicating_fork():
    assert lanes(P, Pipe(), ReplicatingFork(2), P, Pipe(), Join(2, how="zip")) == [()]
    inner = [P, Pipe(), ReplicatingFork(2), Pipe(), BalancingFork(2), P, Pipe()]
    for rows, join in [
        ([P, Pipe(), BalancingFork(2), P, Pipe()], Join(2, how="zip")),
        ([P, Pipe(), BalancingFork(), P, Pipe()], Join(how="zip")),
        (inner, Join(4, how="zip")),
    ]:
        message = broken(6, described(*rows), join)
        assert "to one branch" in message and "how='merge'" in message and repr(join) in message
    assert lanes(*inner, Join(), Pipe(), Join(how="zip")) == [()]


def test_rule_6_a_fork_decided_at_run_time_is_closed_without_a_number():
    for rows, join in [
        ([P, Pipe(), BalancingFork(), P, Pipe()], Join(1)),
        ([P, Pipe(), BalancingFork(), P, Pipe()], Join(2)),
        ([P, Pipe(), ReplicatingFork(2), Pipe(), BalancingFork(max=2), P, Pipe()], Join(2)),
    ]:
        message = broken(6, described(*rows), join)
        assert "close it with Join()" in message and "only the running pipeline decides" in message
        described(*rows, Join())


def test_rule_7_open_branches_are_merged():
    description = described(P, Pipe(), ReplicatingFork(2), P)
    layout = description.layout
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            frame = inspect.currentframe()
            assert frame is not None
            line = frame.f_lineno + 1
            description.plan(cores=1, ordered=True)
        (warning,) = caught
        assert warning.category is ImplicitJoinWarning and (warning.filename, warning.lineno) == (__file__, line)
        assert "2 branches are open" in str(warning.message) and "Join()" in str(warning.message)
        assert description.layout is layout
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        described(P).plan(cores=1, ordered=True)
        try:
            described(P, Pipe(), BalancingFork(), P).plan(cores=1, ordered=True)
        except ImplicitJoinWarning as warned:
            assert "a branch is open" in str(warned)


def test_rule_7_is_told_at_the_line_that_starts_the_run():
    pipeline = Pipeline(engine="inline").add(P).add(Pipe()).add(ReplicatingFork(2)).add(P)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = inspect.currentframe()
        assert frame is not None
        line = frame.f_lineno
        pipeline.run([])
        list(pipeline.stream([]))
        pipeline.open().close()
        with pipeline:
            pass
    assert [(each.filename, each.lineno - line) for each in caught] == [(__file__, number) for number in (1, 2, 3, 4)]


def test_plan_refuses_nothing_and_no_cores():
    try:
        Description().plan(cores=1, ordered=True)
    except ConveyorError as error:
        assert "add a Processor" in str(error)
    else:
        raise AssertionError("an empty plan")
    try:
        described(P).plan(cores=0, ordered=True)
    except ValueError as error:
        assert "cores" in str(error) and "0" in str(error)
    else:
        raise AssertionError("a plan for no cores")


def test_pipe_after_pipe_is_one_pipe():
    for first, second, one in [
        (None, None, None),
        (Pipe(), None, Pipe()),
        (None, Pipe(2), Pipe(2)),
        (Pipe(), Pipe(), Pipe()),
        (Pipe(), Pipe(2), Pipe(2)),
        (Pipe(3), Pipe(), Pipe(3)),
        (Pipe(3), Pipe(2), Pipe(3)),
        (Pipe(2), Pipe(3), Pipe(3)),
        (Pipe(2), Pipe(maxbytes=9), Pipe(2, 9)),
        (Pipe(2, 9), Pipe(), Pipe(2, 9)),
        (Pipe(2, 9), Pipe(3, 8), Pipe(3, 9)),
        (None, Pipe(maxbytes=9), Pipe(maxbytes=9)),
    ]:
        assert one_pipe(first, second) == one
    (lane,) = described(P, Pipe(3), Pipe(), Pipe(2)).layout.lanes
    assert lane.pipe == Pipe(3)


def test_repr_is_the_code():
    description = described(P, Pipe(), ReplicatingFork(2), (P, Count()), Pipe(3), Join(2))
    rest = (
        ".add(Processor(load)).add(Pipe()).add(ReplicatingFork(2)).add(Processor(load), Count())"
        ".add(Pipe(maxsize=3)).add(Join(2))"
    )
    assert repr(description) == "Pipeline()" + rest
    assert description.code("Pipeline(engine='inline')") == "Pipeline(engine='inline')" + rest
    assert repr(Description()) == "Pipeline()"
