"""The description: the elements that the user has added, and the plan made of them.

Law: the only state is one frozen layout.  It is replaced as a whole, after everything that may raise, and that includes
warnings.  So an `add` that raises changes nothing.
"""

from __future__ import annotations

import warnings

from conveyor._lean.typing import TYPE_CHECKING
from conveyor.errors import ImplicitJoinWarning, ImplicitPipeWarning, RuleError
from conveyor.graph.layout import Addition, Layout, StepOperation, closed, extended

if TYPE_CHECKING:
    from conveyor.diagram import Graph
    from conveyor.graph.plan import Plan


class Description:
    """The elements of one pipeline, in the order they were added.

    >>> from conveyor.stages import Pipe, Processor
    >>> description = Description()
    >>> description.add((Processor(str.strip),))
    >>> description.add((Pipe(10),))
    >>> description.add((Processor(len),))
    >>> description
    Pipeline().add(Processor(str.strip)).add(Pipe(maxsize=10)).add(Processor(len))
    >>> [step.name for step in description.plan(cores=2, ordered=True).steps]
    ['strip', 'len']
    """

    def __init__(self) -> None:
        # The operations, the open branches and what each `add` did.
        self.layout = Layout()

    @property
    def empty(self) -> bool:
        return not self.layout.additions

    def add(self, elements: tuple[object, ...], stacklevel: int = 1) -> None:
        """Add `elements` to the open branches, by rules 1 to 6.

        Raises RuleError for an element that may not stand there.  Raises TypeError or ValueError for a Processor that
        cannot run.  The description stays unchanged then.  Warns with ImplicitPipeWarning where a Pipe was put in.
        `stacklevel` counts as in a call of `warnings.warn` in place of this method.
        """
        layout = extended(self.layout, elements)
        addition = layout.additions[-1]
        if addition.piped:
            warnings.warn(_missing_pipe(addition), ImplicitPipeWarning, stacklevel + 1)
        self.layout = layout

    def check_single_items(self, refused: str = "items cannot be submitted one by one") -> None:
        """Raise RuleError where a Processor has outputs that belong to no single item: rule 9.

        `refused` says what is not possible then.
        """
        # Few pipelines have their items submitted.
        from conveyor.stages.job_inspection import may_give
        from conveyor.stages.processor import has_finish, label, list_size

        for operation in self.layout.operations:
            if not isinstance(operation, StepOperation):
                continue
            processor, why = operation.processor, ""
            if list_size(processor) is not None:
                why = f"works in batches (batch={processor.batch})"
                remedy = "leave batch out, or have the job return an output for each item, with per_item=True"
            elif has_finish(processor) and may_give(type(processor).finish):
                why, remedy = "may give outputs in `finish`", "have `finish` return nothing"
            if why:
                raise RuleError(
                    f"Processor {label(processor)!r} {why}, and those belong to no single item, so "
                    f"{refused}: use plain run() or stream(), or {remedy}",
                    rule=9,
                )

    def plan(
        self, *, cores: int, ordered: bool, memory: int | None = None, auto: bool = False, stacklevel: int = 1
    ) -> Plan:
        """Return the plan; branches open at the end are merged, with ImplicitJoinWarning.

        `cores` bounds the workers of all steps whose number the pipeline decides.  `memory` is the machine's, in bytes,
        if known; pipes without `maxbytes` get a share of it.  `auto`: the pipeline decides that of all plain callables.
        Raises RuleError when nothing was added, ValueError for less than one core.  `stacklevel` is as for `add`.
        """
        # Imported here: a process that only describes a pipeline does not need it.
        from conveyor.graph.compiler import compiled

        if self.empty:
            raise RuleError("the pipeline is empty: add a Processor first, as in .add(Processor(load))", rule=2)
        if cores < 1:
            raise ValueError(f"cores must be 1 or more, not {cores!r}")
        layout = closed(self.layout)
        if layout is not self.layout:
            lanes = len(self.layout.lanes)
            what = f"{lanes} branches are" if lanes > 1 else "a branch is"
            warnings.warn(
                f"{what} open at the end of the pipeline and merged into the results: "
                "add Pipe() and Join() to avoid this warning",
                ImplicitJoinWarning,
                stacklevel + 1,
            )
        return compiled(layout, cores=cores, ordered=ordered, memory=memory, auto=auto)

    def graph(self, *, cores: int, ordered: bool, fuse: bool, auto: bool) -> Graph:
        """The graph as a value: what would run now, with branches that are open merged; without nodes if it is empty.

        `fuse`: adjacent Processors that can be are one node.  `auto` is as for `plan`.
        """
        from conveyor.diagram import Graph
        from conveyor.graph.compiler import compiled
        from conveyor.graph.diagram import graph_of

        if self.empty:
            return Graph((), ())
        plan = compiled(closed(self.layout), cores=cores, ordered=ordered, auto=auto)
        if fuse:
            from conveyor.graph.fusion import fused

            plan = fused(plan)
        return graph_of(plan)

    def code(self, prefix: str) -> str:
        """Return the code that adds the same elements to `prefix`, without the Pipes that were put in."""
        return prefix + "".join(
            f".add({', '.join(map(repr, addition.elements))})" for addition in self.layout.additions
        )

    def __repr__(self) -> str:
        return self.code("Pipeline()")


def _missing_pipe(addition: Addition) -> str:
    index = next(change.element for change in addition.changes if change.piped)
    element = addition.elements[index or 0]
    where = f" on {addition.piped} branches" if addition.piped > 1 else ""
    return f"no Pipe in front of {element!r}: one was put in{where}; add Pipe() before it to avoid this warning"
