"""Make thumbnails of a folder of pictures, in threads: Pillow lets go of the interpreter lock while it works.

    pip3 install '.[examples]' && python3 examples/thumbnails.py [pictures]

It shows the thread engine, in which a picture goes from step to step without a copy, Pipes that bound how many pictures
are in memory, and a broken file that ends nothing.  Change first: `folder`, to one of yours.

It prints how large the thumbnails are, and which file was broken:

    12 thumbnails, the largest 128 x 96
    broken.jpg: UnidentifiedImageError
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from conveyor import Pipe, Pipeline, Processor


def load(path: Path) -> tuple[Path, Any]:
    """The picture in a file."""
    return path, Image.open(path).convert("RGB")


def shrink(picture: tuple[Path, Any]) -> tuple[Path, Any]:
    """The same, small."""
    path, image = picture
    image.thumbnail((128, 128))
    return path, image


def save(picture: tuple[Path, Any]) -> tuple[int, int]:
    """Write it beside the original, and return its width and height."""
    path, image = picture
    image.save(path.with_suffix(".small.jpg"), quality=85)
    return image.width, image.height


def make_pictures(folder: Path, pictures: int) -> list[Path]:
    """Pictures of a gradient, and one that is none."""
    for number in range(pictures):
        Image.linear_gradient("L").resize((800, 600)).rotate(number * 30).save(folder / f"{number:03}.jpg")
    (folder / "broken.jpg").write_text("no picture")
    return sorted(folder.glob("*.jpg"))


def main(pictures: int = 12) -> None:
    """Make pictures, and their thumbnails."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = (
            Pipeline(engine="thread")
            .add(Processor(load, workers="auto", on_error="skip"))
            .add(Pipe(maxsize=16))
            .add(Processor(shrink, workers="auto"))
            .add(Pipe(maxsize=16))
            .add(Processor(save))
        )
        sizes = pipeline.run(make_pictures(Path(folder), pictures))
        print(f"{len(sizes)} thumbnails, the largest {' x '.join(map(str, max(sizes)))}")
        for failed in pipeline.failures:
            print(f"broken.jpg: {failed.error.kind}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
