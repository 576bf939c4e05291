"""Compare three models on one stream: each sees every picture, guesses the digit, and then learns from it.

    pip3 install '.[examples]' && python3 examples/compare_models.py [pictures]

It shows what Conveyor was made for: a ReplicatingFork gives each batch to all models, each in a process of its own, and
a zip puts their guesses side by side.  A fourth model is one more line.  Change first: `MODELS`.

It prints the pipeline, and how many guesses of each model were right:

    ●      numbered
    ║      Pipe(maxsize=4)
    ├─┬─┐  ReplicatingFork(3)
    ● │ │  SGDClassifier
    │ ● │  GaussianNB
    │ │ ●  Perceptron
    ║ ║ ║  Pipe(maxsize=65536)
    ├─┴─┘  Join(3, how='zip')
    ▼      results
    SGDClassifier ... %
    GaussianNB ... %
    Perceptron ... %
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from sklearn.datasets import load_digits
from sklearn.linear_model import Perceptron, SGDClassifier
from sklearn.naive_bayes import GaussianNB

from conveyor import Join, Pipe, Pipeline, Processor, ReplicatingFork

MODELS: list[Any] = [SGDClassifier(random_state=0), GaussianNB(), Perceptron(random_state=0)]
BATCH = 50


class Model(Processor[Any, int]):
    """Guesses first, learns then, and says how many guesses were right."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name = type(model).__name__

    def process(self, batch: Any) -> int:
        pictures, digits = batch
        right = int((self.model.predict(pictures) == digits).sum()) if hasattr(self.model, "classes_") else 0
        self.model.partial_fit(pictures, digits, classes=range(10))
        return right


digits = functools.cache(load_digits)


def numbered(start: int) -> Any:
    """The pictures and the digits of one batch."""
    return digits().data[start : start + BATCH], digits().target[start : start + BATCH]


def main(pictures: int = 1750) -> None:
    """Send all batches through all models."""
    pipeline = Pipeline().add(Processor(numbered)).add(Pipe(maxsize=4)).add(ReplicatingFork(len(MODELS)))
    pipeline = pipeline.add(*map(Model, MODELS)).add(Pipe()).add(Join(len(MODELS), how="zip"))
    print(pipeline)
    right = [sum(column) for column in zip(*pipeline.stream(range(0, pictures, BATCH)), strict=True)]
    for model, number in zip(MODELS, right, strict=True):
        print(type(model).__name__, f"{100 * number / pictures:.0f} %")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
