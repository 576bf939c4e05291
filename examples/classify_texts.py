"""Classify texts in batches, by a model that each worker loads once.

    pip3 install '.[examples]' && python3 examples/classify_texts.py [texts]

It shows `setup=`, whose result is the state of the worker, `batch=`, which gives the job many texts at once, and a
generator that gives the results one by one again.  Change first: `load_model`, to load yours.

It prints how many texts are of each kind, and the first of them:

    fruit 500, tools 500
    fruit: ...
"""

from __future__ import annotations

import pickle
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import conveyor
from conveyor import Pipeline, Processor

WORDS = {"fruit": ["apple", "pear", "melon", "ripe", "sweet"], "tools": ["hammer", "saw", "drill", "nail", "steel"]}


def text_of(kind: str) -> str:
    """A text of that kind, more or less."""
    return " ".join(random.choices(WORDS[kind], k=8) + random.choices(["the", "a", "of", "old", "new"], k=8))


def train(path: Path) -> None:
    """Train a model, and write it to a file."""
    kinds = list(WORDS) * 100
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    path.write_bytes(pickle.dumps(model.fit([text_of(kind) for kind in kinds], kinds)))


def load_model(path: Path) -> Any:
    """What each worker does once."""
    return pickle.loads(path.read_bytes())


def classify(texts: list[str]) -> Iterator[tuple[str, str]]:
    """The kind of each text, found for all of them at once."""
    yield from zip(conveyor.worker().state.predict(texts), texts, strict=True)


def main(texts: int = 1000) -> None:
    """Train, make texts, and classify them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pickle")
        train(path)
        classifier = Processor(classify, setup=partial(load_model, path), batch=100, workers=2)
        found = Pipeline().add(classifier).run(text_of(kind) for kind in list(WORDS) * (texts // 2))
        print(", ".join(f"{kind} {number}" for kind, number in sorted(Counter(kind for kind, _ in found).items())))
        print(f"{found[0][0]}: {found[0][1]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
