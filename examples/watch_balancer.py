"""Watch the balancer at work on a real job: which modules of the standard library repeat themselves most?

    python3 examples/watch_balancer.py [folder] [--items N]

Each source file is read, parsed to its syntax tree, and compressed with a slow method.  The three steps cost very
different amounts of time, and no number of workers is given.  The decisions of the balancer are printed as they fall,
and at the end what each step did and which one held up the others.
"""

from __future__ import annotations

import argparse
import ast
import lzma
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    from conveyor import Pipe, Pipeline, Processor
except ModuleNotFoundError:  # run from a checkout, without an installation
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from conveyor import Pipe, Pipeline, Processor


class Module(NamedTuple):
    """A source file, and what is known of it."""

    path: str
    source: bytes
    names: int = 0
    repeats: float = 0.0


def read(path: str) -> Module | None:
    """Read a file; None where that cannot be done."""
    try:
        return Module(path, Path(path).read_bytes())
    except OSError:
        return None


def count_names(module: Module) -> Module:
    """Count the different names that the module uses; none in one that does not parse."""
    try:
        tree = ast.parse(module.source)
    except (SyntaxError, ValueError, RecursionError):
        return module
    return module._replace(names=len({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}))


def measure_repetition(module: Module) -> Module:
    """See by what share the text shrinks when it is compressed."""
    size = len(module.source)
    if not size:
        return module._replace(source=b"")
    return module._replace(source=b"", repeats=max(0.0, 1 - len(lzma.compress(module.source, preset=6)) / size))


def source_files(folder: Path) -> Iterator[str]:
    """The Python files below a folder."""
    for path in sorted(folder.rglob("*.py")):
        if "site-packages" not in path.parts and path.is_file():
            yield str(path)


def build_pipeline() -> Pipeline[str, Module]:
    """Three steps, and not one number."""
    return (
        Pipeline()
        .add(Processor(read, workers="auto"))
        .add(Pipe())
        .add(Processor(count_names, workers="auto"))
        .add(Pipe())
        .add(Processor(measure_repetition, workers="auto"))
    )


def main() -> None:
    """Run, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(sysconfig.get_paths()["stdlib"]))
    parser.add_argument("--items", type=int, default=None, help="no more than so many files, 1 or more")
    arguments = parser.parse_args()
    if arguments.items is not None and arguments.items < 1:
        parser.error(f"--items must be 1 or more, not {arguments.items}")
    paths = list(source_files(arguments.folder))[: arguments.items]
    if not paths:
        parser.error(f"there is no .py file under {arguments.folder}, or it is no folder")
    modules: list[Module] = []
    with build_pipeline() as pipeline:
        known = 0
        for module in pipeline.stream(paths):
            modules.append(module)
            decisions = pipeline.stats().decisions
            for decision in decisions[known:]:
                print(f"{decision.at:6.2f} s  {decision}", flush=True)
            known = len(decisions)
        stats = pipeline.stats()
    print(f"\n{len(modules)} of {len(paths)} files in {stats.seconds:.1f} s, on {stats.cores} cores")
    print(stats)
    print("\nthat repeat themselves most:")
    for module in sorted(modules, key=lambda module: -module.repeats)[:5]:
        name = Path(module.path).relative_to(arguments.folder)
        print(f"  {module.repeats:4.0%}  {name}, {module.names} names")


if __name__ == "__main__":
    main()
