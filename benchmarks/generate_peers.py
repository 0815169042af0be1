"""One peer's generation of the same rows, as `benchmarks.generate` measures it; runs in the peer's own environment.

    python generate_peers.py NAME SETTINGS.json

Prints a line of JSON: seconds, CPU seconds and peak memory without imports, and the rows delivered. Standard library
and the peer only. `aiohttp` and `sdk` are what one writes oneself: a semaphore, and no retries (aiohttp) or two.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
Run = Callable[[], int]


def aiohttp_bare(settings: Settings) -> Run:
    import aiohttp

    async def main() -> int:
        gate = asyncio.Semaphore(settings["concurrency"])
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(prompt: str) -> str | None:
                body = {"model": "mock", "messages": [{"role": "user", "content": prompt}]}
                async with gate, session.post(f"{settings['url']}/chat/completions", json=body) as reply:
                    if reply.status != 200:
                        return None
                    text: str = (await reply.json())["choices"][0]["message"]["content"]
                    return text

            answers = await asyncio.gather(*(ask(prompt) for prompt in settings["prompts"]))
            return sum(answer is not None for answer in answers)

    return lambda: asyncio.run(main())


def sdk_and_semaphore(settings: Settings) -> Run:
    import openai

    async def main() -> int:
        gate = asyncio.Semaphore(settings["concurrency"])
        async with openai.AsyncOpenAI(base_url=settings["url"], api_key="no-key") as client:

            async def ask(prompt: str) -> str | None:
                async with gate:
                    try:
                        reply = await client.chat.completions.create(
                            model="mock", messages=[{"role": "user", "content": prompt}]
                        )
                    except openai.APIError:
                        return None
                    return reply.choices[0].message.content

            answers = await asyncio.gather(*(ask(prompt) for prompt in settings["prompts"]))
            return sum(answer is not None for answer in answers)

    return lambda: asyncio.run(main())


def curator(settings: Settings) -> Run:
    os.environ.update(CURATOR_DISABLE_RICH_DISPLAY="1", TELEMETRY_ENABLED="0", HOSTED_CURATOR_VIEWER="0")
    # it counts tokens with tiktoken, whose files litellm brings along: no download
    litellm = Path(importlib.util.find_spec("litellm").origin or "").parent  # type: ignore[union-attr]
    os.environ["TIKTOKEN_CACHE_DIR"] = str(litellm / "litellm_core_utils" / "tokenizers")
    from bespokelabs import curator as library

    rpm = settings["rpm"] or 1_000_000
    model = library.LLM(
        model_name="mock",
        backend="openai",
        backend_params={
            "base_url": settings["url"],
            "api_key": "no-key",
            "max_concurrent_requests": settings["concurrency"],
            "max_requests_per_minute": int(rpm),
            "max_tokens_per_minute": 1_000_000_000,
            "require_all_responses": False,
        },
    )

    def run() -> int:
        found = model(settings["prompts"])
        return len(found.dataset if hasattr(found, "dataset") else found)

    return run


def distilabel(settings: Settings) -> Run:
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="bench") as pipeline:
        rows = [{"instruction": prompt} for prompt in settings["prompts"]]
        load = LoadDataFromDicts(data=rows, batch_size=settings["concurrency"])
        llm = OpenAILLM(model="mock", base_url=settings["url"], api_key="no-key")
        load >> TextGeneration(llm=llm, input_batch_size=settings["concurrency"])

    def run() -> int:
        found = pipeline.run(use_cache=False)
        return sum(row["generation"] is not None for split in found["default"].values() for row in split)

    return run


def datadesigner(settings: Settings) -> Run:
    import data_designer.config as dd
    import pandas
    from data_designer.interface import DataDesigner

    provider = dd.ModelProvider(name="mock", endpoint=settings["url"], provider_type="openai", api_key="no-key")
    parameters = dd.ChatCompletionInferenceParams(max_parallel_requests=settings["concurrency"])
    model = dd.ModelConfig(alias="mock", model="mock", provider="mock", inference_parameters=parameters)
    designer = DataDesigner(artifact_path=Path("artifacts"), model_providers=[provider])
    config = dd.DataDesignerConfigBuilder(model_configs=[model])
    seed = pandas.DataFrame({"question": settings["prompts"]})
    config.with_seed_dataset(dd.DataFrameSeedSource(df=seed))
    config.add_column(dd.LLMTextColumnConfig(name="answer", model_alias="mock", prompt="{{ question }}"))

    def run() -> int:
        return len(designer.create(config, num_records=len(seed)).load_dataset())

    return run


PEERS = {
    "aiohttp": aiohttp_bare,
    "sdk": sdk_and_semaphore,
    "curator": curator,
    "distilabel": distilabel,
    "datadesigner": datadesigner,
}


def _usage() -> float:
    """CPU seconds of this process and of those it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    name, settings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    run = PEERS[name](settings)
    cpu, started = _usage(), time.monotonic()
    delivered, code = 0, 0
    try:
        delivered = run()
    except Exception as error:  # a peer may fail in its own way; that is a result
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    result = {
        "seconds": time.monotonic() - started,
        "cpu_seconds": _usage() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "exit_code": code,
        "delivered": delivered,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
