"""A web service whose handlers await a pipeline: which names does a piece of Python use most?

    pip install fastapi uvicorn
    python3 examples/service.py [--port 8000]
    curl localhost:8000/names -H 'Content-Type: application/json' -d '{"source": "a = b + b"}'

A request goes through two steps on all cores.  Source that does not parse is answered with 422.  A worker that dies
costs no request.  While many requests wait for a worker, the event loop stays free.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse

try:
    from conveyor import Pipe, Pipeline, Processor, ProcessorError
except ModuleNotFoundError:  # run from a checkout, without an installation
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from conveyor import Pipe, Pipeline, Processor, ProcessorError


def names_in(source: str) -> list[str]:
    """Return each use of a name; raises SyntaxError where the source does not parse."""
    return [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]


def most_used(names: list[str]) -> dict[str, int]:
    """Return the ten names that are used most, and how often."""
    return dict(Counter(names).most_common(10))


pipeline = Pipeline().add(Processor(names_in, workers=2)).add(Pipe()).add(Processor(most_used))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Have workers as long as the service is up."""
    async with pipeline:
        yield


async def names(source: Annotated[str, Body(embed=True)]) -> dict[str, int]:
    """Answer with the names."""
    (result,) = await pipeline.asubmit(source)
    return result


def stats() -> dict[str, Any]:
    """Answer with what each step did.  FastAPI calls a plain function in a thread, so this may wait for the broker."""
    return pipeline.stats().to_dict()


async def refused(request: Request, error: ProcessorError) -> JSONResponse:
    """Answer for an item that failed: the request is at fault, not the service."""
    return JSONResponse({"step": error.processor, "error": f"{error.kind}: {error.__cause__}"}, status_code=422)


app = FastAPI(lifespan=lifespan)
app.add_api_route("/names", names, methods=["POST"])
app.add_api_route("/stats", stats)
app.add_exception_handler(ProcessorError, refused)


def main() -> None:
    """Serve until Ctrl-C."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    uvicorn.run(app, port=parser.parse_args().port)


if __name__ == "__main__":
    main()
