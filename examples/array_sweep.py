"""Sweep a parameter over arrays, and draw what comes out: the logistic map, from order to chaos.

    pip3 install '.[examples]' && python3 examples/array_sweep.py [columns [picture.svg]]

It shows small items that become large arrays in the workers, and results that arrive in the order of the sweep, so that
they can be stacked as they are.  Change first: `orbit`, to a computation of yours.

It prints the shape of the result, and draws it where a file is named:

    (400, 200) values between 0.0... and 1.0...
"""

from __future__ import annotations

import sys
from typing import Any

import numpy

from conveyor import Pipe, Pipeline, Processor

STEPS, KEPT = 1000, 200


def orbit(growth: float) -> Any:
    """The last values of x = growth * x * (1 - x), of a hundred starts: an array of STEPS rows."""
    values = numpy.linspace(0.01, 0.99, 100)
    rows = numpy.empty((STEPS, len(values)))
    for row in rows:
        row[:] = values = growth * values * (1 - values)
    return rows


def tail(rows: Any) -> Any:
    """What is left when it has settled: the last values of one start."""
    return rows[-KEPT:, 50].copy()  # not a view of the large array


def main(columns: int = 400, picture: str = "") -> None:
    """Sweep, and draw."""
    growths = numpy.linspace(2.6, 4.0, columns)
    pipeline = Pipeline().add(Processor(orbit, workers="auto")).add(Pipe(maxsize=8)).add(Processor(tail))
    values: Any = numpy.array(pipeline.run(growths.tolist()))
    print(values.shape, f"values between {values.min():.4f} and {values.max():.4f}")
    if picture:
        import matplotlib.pyplot

        matplotlib.pyplot.figure(figsize=(7, 3.5))
        matplotlib.pyplot.plot(growths, values, ",", color="teal", alpha=0.4, rasterized=True)
        matplotlib.pyplot.xlabel("growth")
        matplotlib.pyplot.savefig(picture, bbox_inches="tight", dpi=120)


if __name__ == "__main__":
    main(*(int(each) if each.isdigit() else each for each in sys.argv[1:]))  # type: ignore[arg-type]
