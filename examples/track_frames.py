"""Send the frames of a video to workers with a device each, and put what they find in order again.

    pip3 install '.[examples]' && python3 examples/track_frames.py [frames]

It shows `conveyor.worker().index`, by which each worker takes a device of its own, as GPUs are; `setup=`, which loads
there what is needed once; and large arrays that come back in order.  Change first: `take_device`, to load your model.

It prints where a spot was in the first frame and in the last, and which devices have looked for it:

    240 frames of 360 x 640, on device 0...
    the spot goes from (180, 60) to (299, 538)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy

import conveyor
from conveyor import Pipeline, Processor

DEVICES, HEIGHT, WIDTH, RADIUS = 2, 360, 640, 9


def video(count: int) -> Iterator[Any]:
    """Frames with noise, through which a bright spot moves along a wave."""
    random, rows, columns = numpy.random.default_rng(1), *numpy.ogrid[:HEIGHT, :WIDTH]
    for number in range(count):
        frame = random.integers(0, 120, (HEIGHT, WIDTH), dtype=numpy.uint8)
        row, column = HEIGHT / 2 + 120 * numpy.sin(number / 30), 60 + 2 * number
        frame[(rows - row) ** 2 + (columns - column) ** 2 < RADIUS**2] = 250
        yield frame


def take_device() -> tuple[str, Any]:
    """What each worker does once: take the device with its own number, and load there what it needs."""
    device = f"device {conveyor.worker().index}"  # for torch: f"cuda:{conveyor.worker().index}"
    return device, numpy.arange(256) > 200  # stands for model.to(device)


def locate(frame: Any) -> tuple[str, int, int]:
    """The device of this worker, and where the spot is."""
    device, is_bright = conveyor.worker().state
    rows, columns = numpy.nonzero(is_bright[frame])
    return device, round(rows.mean()), round(columns.mean())


def main(count: int = 240) -> None:
    """Make frames, and follow the spot."""
    track = Pipeline().add(Processor(locate, setup=take_device, workers=DEVICES)).run(video(count))
    devices = ", ".join(sorted({device for device, _, _ in track}))
    print(f"{len(track)} frames of {HEIGHT} x {WIDTH}, on {devices}")
    print(f"the spot goes from {track[0][1:]} to {track[-1][1:]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
