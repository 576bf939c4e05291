"""One hash over all that the core wants done, so that whoever changes the house can show that it decides as before.

Law: the same on every run and Python: all is drawn from seeds, and nothing is written that a name, an id or the order of
a set decides.  The table of kinds and fields is `KINDS`: where a command or a field gets another name, that
table changes and the hash does not.  `stats()` is never called.

    python3 -m tests.simulation.command_hash                 # all seeds; status 0 where the hash is the recorded one, else 1
    python3 -m tests.simulation.command_hash --seeds 8       # the first ones
    python3 -m tests.simulation.command_hash --show 3        # all commands of one seed, with their times, to be compared
    python3 -m tests.simulation.command_hash --record        # write the hashes to tests/simulation/command_hash.txt

A seed is two courses of events: one of `tests/helpers/simulation.py`, in which everything goes wrong that may, and one of
`tests/helpers/clocked.py`, in which everything takes its time.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from conveyor import ImplicitPipeWarning
from conveyor.core import commands
from conveyor.core.data.pieces import items_of, spec_of
from conveyor.core.machine import Machine
from conveyor.graph.plan import BalanceNode, Plan, ReplicateNode, StepNode, ZipNode
from tests.helpers.clocked import ClockedShell, load_plan, timed
from tests.helpers.pipelines import random_input, random_pipeline
from tests.helpers.simulation import Scenario, Stage, simulate
from tests.helpers.variants import loosened, slimmed, tightened, work

RECORD = Path(__file__).with_suffix(".txt")
SEEDS = 300
# A test has no time for more.
FEW_SEEDS = 16
SIMULATED_EVENTS, CLOCKED_EVENTS, MOST_WORK = 600, 1500, 3000

# Each kind has its letter, and its fields are written in this order.
KINDS: dict[type, tuple[str, tuple[str, ...]]] = {
    commands.SendLease: ("L", ("worker", "lease", "pieces", "items", "credit", "finish", "skip", "give_up", "attempt")),
    commands.Grant: ("G", ("worker", "lease", "credit")),
    commands.CancelLeases: ("C", ("worker",)),
    commands.Revoke: ("R", ("worker", "lease", "calls")),
    commands.StartWorker: ("S", ("step", "worker")),
    commands.EndWorker: ("E", ("worker",)),
    commands.ProbeWorker: ("K", ("worker",)),
    commands.KillWorker: ("X", ("worker",)),
    commands.SetFlushInterval: ("N", ("worker", "seconds")),
    commands.GaveUp: ("U", ("step", "first", "last", "attempts", "when", "why")),
    commands.Pull: ("P", ("credit",)),
    commands.Emit: ("M", ("pieces", "items", "report_within_seconds")),
    commands.Deliver: ("D", ("pieces", "items", "lineages", "settled", "report_within_seconds")),
    commands.ItemFailed: ("I", ("origin", "step", "number", "attempts", "why", "skipped")),
    commands.Finish: ("F", ()),
    commands.Fail: ("A", ("step", "worker", "first", "last", "cause", "loss")),
    # Not a command, but part of one.
    commands.GiveUp: ("V", ("kind", "cause", "attempts", "first", "last", "skip_unpickling")),
}
PIECES = "pieces"
HANDLE = "handle"

# What must have been there when the hash of all seeds is made: parts of plans, and reasons of failure.
FEATURES = (
    *("replicating", "balancing", "zip", "unordered", "batch", "automatic", "timeout", "gives up", "max items"),
    *("max failures", "state", "few bytes"),
    *(f"loss of {loss}" for loss in ("item", "unpickle", "receive", "overdue", "state", "setup", "wait", "finish")),
    *("loss of failures", "loss of None", "verdict died", "verdict overdue"),
)


def canonical(value: Any) -> str:
    """A value as it is written, whatever the Python."""
    if value is None or isinstance(value, bool):
        return {None: "-", False: "f", True: "t"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, str):
        return ascii(value)
    if type(value) in KINDS:
        letter, fields = KINDS[type(value)]
        return " ".join([letter, *(written(field, getattr(value, field)) for field in fields)])
    if isinstance(value, tuple | list):
        return f"({' '.join(map(canonical, value))})"
    raise TypeError(f"{value!r} has no canonical form: add its type to KINDS in tests/simulation/command_hash.py")


def written(field: str, value: Any) -> str:
    """A field as it is written; of pieces, what is in them and where they were cut."""
    if field != PIECES:
        return canonical(value)
    cuts = [(start, stop) for _, start, stop in value]
    return f"{canonical(cuts)} {canonical(items_of(*spec_of(value)))}"


class Writer:
    """Writes down what machines want, while it is `watching`."""

    def __init__(self, keep: bool = False) -> None:
        self.hash = hashlib.sha256()
        self.lines: list[str] | None = [] if keep else None
        self.kinds: Counter[str] = Counter()
        self.features: Counter[str] = Counter()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Write down the commands of all machines."""
        handle = getattr(Machine, HANDLE)

        def watched(machine: Machine, event: Any, now: float) -> Any:
            wanted = handle(machine, event, now)
            for command in wanted:
                self.write(now, command)
            return wanted

        with mock.patch.object(Machine, HANDLE, watched):
            yield

    def write(self, now: float, command: Any) -> None:
        """Write down one command."""
        line = f"{now.hex()} {canonical(command)}\n"
        self.hash.update(line.encode())
        if self.lines is not None:
            self.lines.append(line)
        self.kinds[KINDS[type(command)][0]] += 1
        if isinstance(command, commands.Fail):
            self.features[f"loss of {command.loss}"] += 1
        elif isinstance(command, commands.SendLease) and command.give_up is not None:
            self.features[f"verdict {command.give_up.kind}"] += 1

    def take_in(self, plan: Plan) -> None:
        """Count what a plan has in it."""
        steps = [node for node in plan.nodes if isinstance(node, StepNode)]
        found = {
            "replicating": any(isinstance(node, ReplicateNode) for node in plan.nodes),
            "balancing": any(isinstance(node, BalanceNode) for node in plan.nodes),
            "zip": any(isinstance(node, ZipNode) for node in plan.nodes),
            "unordered": not plan.ordered,
            "batch": any(step.batch is not None for step in steps),
            "automatic": any(step.auto for step in steps),
            "timeout": any(step.timeout is not None for step in steps),
            "gives up": any(step.gives_up for step in steps),
            "max items": any(step.max_items is not None for step in steps),
            "max failures": plan.setting("max_failures") is not None,
            "state": any(not step.restartable for step in steps),
            "few bytes": any(step.bound_bytes < 1000 for step in steps),
        }
        self.features.update(feature for feature, there in found.items() if there)

    @property
    def missing(self) -> list[str]:
        """The kinds of commands that nobody wanted, though they may be: no item is submitted here."""
        return sorted({letter for letter, _ in KINDS.values()} - {"V", "D", "I"} - self.kinds.keys())


def clocked_plan(source: random.Random) -> Plan:
    """A random plan with all that a step may have."""
    choose = source.randrange
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImplicitPipeWarning)
        pipeline = random_pipeline(choose, 1 + choose(2), 1 + choose(3), engine="inline")
        memory = source.choice([None, 1 << 24, 1 << 30])
        cores = source.choice([1, 2, 4, 16])
        plan = pipeline._description.plan(cores=cores, ordered=choose(5) > 0, memory=memory)
    if choose(2):
        plan = tightened(plan, 1 + choose(30))
    if choose(2):
        plan = loosened(plan, source)
    if choose(2):
        plan = slimmed(plan, source, [1, 1000, 1 << 20, 64 << 20])
    return timed(plan, source)


def run_clocked(seed: int, writer: Writer) -> None:
    """One run in simulated time."""
    source = random.Random(f"clocked {seed}")
    plan = clocked_plan(source)
    items = random_input(source.randrange) * source.choice([1, 1, 10])
    while work(plan, len(items)) > MOST_WORK:
        items = items[: len(items) // 2]
    is_load = source.randrange(3) == 0
    if is_load:
        plan, items = load_plan(source), list(range(source.randint(300, 2000)))
    writer.take_in(plan)
    shell = ClockedShell(plan, items, source, source.choice([8, 8, 1 << 20, 16 << 20]), is_load)
    cancel_at = source.randrange(CLOCKED_EVENTS) if not source.randrange(4) else CLOCKED_EVENTS
    events = 0
    while not shell.finished and not shell.failure:
        events += 1
        if events >= cancel_at and not shell.cancelled:
            shell.cancel()
        else:
            shell.step()


def hash_of_seed(seed: int, writer: Writer) -> str:
    """Run a seed, and return its hash."""
    before = writer.hash
    writer.hash = hashlib.sha256()
    with writer.watching():
        scenario = Scenario(seed, events=SIMULATED_EVENTS)
        writer.take_in(Stage(scenario).plan)
        simulate(scenario)
        run_clocked(seed, writer)
    digest, writer.hash = writer.hash.hexdigest(), before
    writer.hash.update(f"{seed} {digest}\n".encode())
    return digest


def hashes(seeds: int, writer: Writer, say: Callable[[str], None] | None = None) -> dict[int, str]:
    """Run the first seeds, and return the hash over the first ones, by their number."""
    found: dict[int, str] = {}
    for seed in range(seeds):
        digest = hash_of_seed(seed, writer)
        if say is not None:
            say(f"{seed} {digest}")
        found[seed + 1] = writer.hash.hexdigest()
        if seed % 16 == 0:
            gc.collect()
    return found


def recorded() -> dict[int, str]:
    """The recorded hashes, by the number of seeds."""
    if not RECORD.exists():
        return {}
    lines = RECORD.read_text(encoding="ascii").splitlines()
    return {int(seeds): digest for seeds, digest in map(str.split, lines)}


def main(arguments: list[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Make the hash, and compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--each", action="store_true", help="say the hash of each seed, too")
    parser.add_argument("--show", type=int, metavar="SEED", help="say the commands of one seed")
    parser.add_argument("--record", action="store_true", help="write the hashes down as those to be held to")
    options = parser.parse_args(arguments)
    if options.record and options.seeds != SEEDS:
        parser.error(f"--record takes all {SEEDS} seeds: leave --seeds out")
    if options.show is not None:
        writer = Writer(keep=True)
        hash_of_seed(options.show, writer)
        say("".join(writer.lines or ()).rstrip())
        return 0
    writer = Writer()
    found = hashes(options.seeds, writer, say if options.each else None)
    digest = found[options.seeds]
    say(f"{options.seeds} {digest}")
    say("commands: " + ", ".join(f"{letter} {count:,}" for letter, count in sorted(writer.kinds.items())))
    say("features: " + ", ".join(f"{feature} {writer.features[feature]:,}" for feature in FEATURES))
    missing = [kind for kind in writer.missing if options.seeds >= FEW_SEEDS] + [
        feature for feature in FEATURES if options.seeds >= SEEDS and not writer.features[feature]
    ]
    if missing:
        say(f"not there, and must be: {', '.join(missing)}")
        return 1
    if options.record:
        RECORD.write_text("".join(f"{seeds} {found[seeds]}\n" for seeds in (FEW_SEEDS, SEEDS)), encoding="ascii")
    expected = recorded().get(options.seeds)
    if expected is not None and expected != digest:
        say(f"recorded: {expected}. The core wants something else than before.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
