"""The live view of the steps as text: what is in it, and that it fits.

Law: statistics are written down here, and lines are compared as a whole; no pipeline runs.
"""

from __future__ import annotations

import itertools
from typing import Any

from conveyor import Decision, Progress, Stats, StepStats
from conveyor.terminal.table import FANCY, SIMPLE, StepsTable, cells, fit
from tests.helpers.support import TestCase


def step(name: str, workers: int = 1, items: int = 0, waiting: int = 0, **fields: Any) -> StepStats:
    known: dict[str, Any] = dict.fromkeys(("mean", "p50", "p99"))
    known |= {"starting": 0, "most_workers": workers, "items_out": items, "bound": 100, "units": items, "failed": 0}
    known |= dict.fromkeys(("busy", "cpu", "blocked", "stalled"), 0.0)
    return StepStats(processor=name, workers=workers, items_in=items, waiting=waiting, **{**known, **fields})


def stats(seconds: float, *steps: StepStats, cores: int = 16, decisions: tuple[Decision, ...] = ()) -> Stats:
    return Stats(seconds, cores, steps, decisions)


def shown(table: StepsTable, known: Stats | None, columns: int = 79, rows: int | None = 23) -> list[str]:
    """The lines, of which each must fit."""
    lines = [
        "".join(text for text, _ in line) for line in table.lines(Progress(410, 1000, 83.0, 7.1), known, columns, rows)
    ]
    assert max(map(cells, lines)) <= columns, lines
    assert rows is None or len(lines) <= rows, lines
    return [line.rstrip() for line in lines]


# A pipeline of 12 steps on three branches, and 30 workers.
NAMES = ("read", "decode", "normalise_every_record", "tokens-1", "tokens-2", "tokens-3", "language", "sentiment")
NAMES += ("score", "merge", "check", "write")
WORKERS = (1, 2, 4, 3, 3, 3, 4, 3, 2, 2, 2, 1)


def twelve(seconds: float, items: int) -> Stats:
    steps = [
        step(
            name,
            workers,
            items - 100 * place,
            waiting=97 if place < 7 else place,
            busy_seconds=seconds * workers * (0.97 if place < 7 else 0.3),
            stalled=seconds * (1.0 if place < 7 else 0.0),
            failed=3 if name == "language" else 0,
            starting=1 if name == "language" else 0,
        )
        for place, (name, workers) in enumerate(zip(NAMES, WORKERS, strict=True))
    ]
    return stats(seconds, *steps)


class TableTest(TestCase):
    def table(self, *looks: Stats, signs: Any = FANCY) -> StepsTable:
        table = StepsTable(signs)
        for each in looks:
            table.look(each)
        return table

    def test_twelve_steps_in_80_columns(self) -> None:
        first, last = twelve(10.0, 2000), twelve(12.0, 12_345)
        expected = """\
410 of 1,000 items (41 %), 83 items/s, 7 s left
  step                 pipe     waiting workers  busy     items     rate failed
  read                 ███████▊      97       1   97%    12,345  5,172/s      0
  decode               ███████▊      97       2   97%    12,245  5,172/s      0
  normalise_ev…_record ███████▊      97       4   97%    12,145  5,172/s      0
  tokens-1             ███████▊      97       3   97%    12,045  5,172/s      0
  tokens-2             ███████▊      97       3   97%    11,945  5,172/s      0
  tokens-3             ███████▊      97       3   97%    11,845  5,172/s      0
▸ language             ███████▊      97     4+1   97%    11,745  5,172/s      3
  sentiment            ▌·······       7       3   30%    11,645  5,172/s      0
  score                ▋·······       8       2   30%    11,545  5,172/s      0
  merge                ▋·······       9       2   30%    11,445  5,172/s      0
  check                ▊·······      10       2   30%    11,345  5,172/s      0
  write                ▉·······      11       1   30%    11,245  5,172/s      0
▸ language holds up the others, 100% of the time, 30 workers, 16 cores"""
        lines = shown(self.table(first, last), last)
        assert lines == expected.splitlines(), "\n".join(lines)

    def test_every_size(self) -> None:
        first, last = twelve(10.0, 2000), twelve(12.0, 12_345)
        table = self.table(first, last)
        for columns in range(1, 200, 3):
            for rows in (1, 2, 3, 4, 5, 9, 15, 40, None):
                lines = shown(table, last, columns, rows)
                if rows is not None and rows > 3 and columns >= 30:
                    assert any("▸ language" in line for line in lines), lines

    def test_where_rows_are_missing_the_busiest_steps_stay(self) -> None:
        first, last = twelve(10.0, 2000), twelve(12.0, 12_345)
        lines = shown(self.table(first, last), last, rows=8)
        names = [line[2:].split(" ")[0] for line in lines[2:6]]
        ordered = [fit(each, 20) for each in NAMES]
        assert "language" in names and names == [each for each in ordered if each in names], lines
        assert lines[6] == "  … 8 more, at most 97% busy" and len(lines) == 8, lines

    def test_where_columns_are_missing(self) -> None:
        first, last = twelve(10.0, 2000), twelve(12.0, 12_345)
        heads = [shown(self.table(first, last), last, columns)[1].split() for columns in (79, 68, 60, 50, 35, 25)]
        gone = [set(wide) - set(narrow) for wide, narrow in itertools.pairwise(heads)]
        assert gone == [{"waiting"}, {"rate"}, {"pipe"}, {"failed", "items"}, {"workers"}], heads

    def test_the_end_is_that_of_the_whole_run(self) -> None:
        known = stats(4.0, step("one", 2, 100, busy=0.25, stalled=1.0), step("two", 1, 50, busy=0.5), cores=1)
        lines = shown(self.table(known), known, rows=None)
        assert [line.split()[1:] for line in lines[2:3]] == [["one", "·" * 20, "0", "2", "25%", "100", "25/s"]], lines
        assert lines[-1] == "▸ one holds up the others, 25% of the time, 3 workers, 1 core", lines

    def test_the_last_seconds_count(self) -> None:
        """What a step did before is forgotten, and a new worker counts from its first look on."""
        looks = [
            stats(at, step("one", 1 if at < 20 else 2, items, busy_seconds=busy))
            for at, items, busy in ((0.0, 0, 0.0), (10.0, 1000, 10.0), (20.0, 1000, 10.0), (22.0, 1004, 12.0))
        ]
        assert shown(self.table(*looks), looks[-1])[2].split()[-4:] == ["2", "8%", "1,004", "0.33/s"]
        assert shown(self.table(looks[0]), looks[0])[2].split()[-1] == "0/s"
        assert shown(self.table(*looks), looks[-1], rows=None)[2].split()[-4:] == ["2", "35%", "1,004", "46/s"]

    def test_nothing_holds_up_the_others(self) -> None:
        known = stats(4.0, step("one"))
        assert shown(self.table(known), known)[-1] == "  1 worker, 16 cores"
        assert shown(self.table(), None) == ["410 of 1,000 items (41 %), 83 items/s, 7 s left"]

    def test_a_gauge_is_empty_or_full_only_where_the_pipe_is(self) -> None:
        for signs, expected in (
            (FANCY, ["········", "▏·······", "███▉····", "███████▉", "████████", "████████"]),
            (SIMPLE, ["--------", "#-------", "###-----", "#######-", "########", "########"]),
        ):
            table, steps = self.table(signs=signs), [step("s" * 40, waiting=n) for n in (0, 1, 499, 999, 1000, 1008)]
            gauges = []
            for each in steps:
                known = stats(1.0, StepStats(**{**vars_of(each), "bound": 1000}))
                table.look(known)
                gauges.append(shown(table, known, 60)[2].split()[-5])
            assert [each[:8] for each in gauges] == expected, gauges

    def test_names(self) -> None:
        assert fit("数値" * 20, 9) == "数値数…値" and cells(fit("数値" * 20, 9)) == 9
        assert fit("tab\tand\x1b[2J", 40) == "tab?and?[2J"
        assert (fit("word", 1), fit("word", 0)) == ("…", "")
        known = stats(1.0, step("ä" * 60), step("数値" * 30))
        shown(self.table(known), known)


def vars_of(each: StepStats) -> dict[str, Any]:
    return {name: getattr(each, name) for name in each._value_fields}
