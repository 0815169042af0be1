"""One generate job as `benchmarks.generate` measures it: the whole stage, ledger and Parquet included.

    python -m benchmarks.generate_ours SETTINGS.json [--no-network]

With --no-network answers come from within the process, at once: for memory at a million rows. Prints a line of JSON:
seconds, CPU seconds and peak memory of the job itself, imports left out, and the exit code.
"""

from __future__ import annotations

import asyncio
import io
import json
import resource
import sys
import time
from pathlib import Path

from rich.console import Console

from distill.errors import DistillError
from distill.generate import job as _imported_before_the_clock_starts  # noqa: F401
from distill.generate import stage
from distill.recipe.schema import Recipe
from distill.runs import Run
from distill.teacher import endpoint
from distill.teacher.transport import HttpReply, Transport


def peak_mib() -> float:
    """Most memory of this program so far; `ru_maxrss` would count what the process was before it became this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


class Within:
    """A transport whose answers need no server; each takes one turn of the event loop."""

    async def request(self, method: str, path: str, body: bytes | None, content_type: str) -> HttpReply:
        await asyncio.sleep(0)
        question = json.loads(body or b"")["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"An answer to: {question}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 20, "completion_tokens": 10}
        return HttpReply(200, {}, json.dumps({"choices": [choice], "usage": usage}).encode())

    async def close(self) -> None:
        """Nothing is open."""


def within(teacher: object, url: str, credential: object) -> Transport:
    """In the place of `endpoint.open_transport`."""
    return Within()


def main() -> None:
    if "--no-network" in sys.argv:
        endpoint.open_transport = within
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    start_mib = peak_mib()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    code, message = 0, ""
    try:
        stage.run(recipe, Run(recipe), base_url=lambda: None, console=Console(file=io.StringIO()))
    except DistillError as error:
        code, message = error.exit_code, str(error)
    after = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "seconds": time.monotonic() - started,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mib": peak_mib(),
        "start_mib": start_mib,
        "exit_code": code,
        "message": message,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
