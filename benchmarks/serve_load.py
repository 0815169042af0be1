"""`distill bench` on the Llama of 30 M parameters: named by its folder, and at the URL of a server that runs.

    python -m benchmarks.serve_load [--quick] [--plot PATH] [--json PATH]

Both runs are the command itself. The server computes on one thread, so that the load has a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import Row, envelope, write_json
from benchmarks.serve import thirty_million
from distill.model.load import load_tokenizer
from distill.serve.child import embedded_server

TOKENIZER = Path(__file__).parent.parent / "data" / "teacher"  # its ids are the first of the model's


def save_model(folder: Path) -> None:
    """A checkpoint that the server loads as any other."""
    thirty_million().save_pretrained(folder)
    load_tokenizer(TOKENIZER).save_pretrained(folder)


def bench(target: str, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """What `distill bench` wrote; its table goes to the terminal."""
    out = folder / "bench.json"
    subprocess.run([sys.executable, "-m", "distill", "bench", target, *arguments, "--json", str(out)], check=True)
    document: dict[str, Any] = json.loads(out.read_text())
    return document


def rows_of(name: str, document: dict[str, Any]) -> list[Row]:
    """Throughput, waiting and use of the machine at each rate; all requests have to be answered."""
    asked = document["workload"]["num_requests"]
    rows = []
    for rate in document["rates"]:
        at = f"{name}, " + ("all at once" if rate["rate"] is None else f"{rate['rate']:.2f} requests/s")
        rows.append(Row(f"{at}: answered", rate["answered"], "requests", bar=asked, ok=rate["answered"] == asked))
        rows.append(Row(f"{at}: output", rate["output_tokens_per_second"], "tokens/s"))
        for key, label in (("first_token", "time to first token"), ("between_tokens", "time between tokens")):
            for percentile in ("p50", "p95", "p99"):
                rows.append(Row(f"{at}: {label}, {percentile}", 1000 * rate[key][percentile], "ms"))
        rows.append(Row(f"{at}: memory bandwidth", rate["bandwidth_fraction"], "share"))
        rows.append(Row(f"{at}: FLOP/s", rate["flop_fraction"], "share"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter answers: under a minute")
    parser.add_argument("--plot", type=Path, help="of the model's run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    size = ["--requests", "8", "--max-tokens", "8"] if options.quick else ["--requests", "32", "--max-tokens", "32"]
    plot = [] if options.plot is None else ["--plot", str(options.plot)]
    rates = ["--rate", "2"] if options.quick else ["--rate", "1", "--rate", "4"]
    with TemporaryDirectory(prefix="distill-serve-load-") as name:
        model = Path(name) / "llama-30m"
        save_model(model)
        by_folder = bench(str(model), [*size, *plot, "--model-name", model.name], Path(name))
        with embedded_server(model, log_path=Path(name) / "server.log", model_name=model.name) as url:
            by_url = bench(url, [*size, *rates], Path(name))
    for document in (by_folder, by_url):
        document["target"] = document["model"]  # not where it stood for the moment
    rows = [*rows_of("folder", by_folder), *rows_of("URL", by_url)]
    if options.json is not None:
        command = "python -m benchmarks.serve_load" + (" --quick" if options.quick else "")
        details = {"folder": by_folder, "url": by_url}
        write_json(options.json, envelope(what="distill bench", command=command, rows=rows, details=details))
    return 0 if all(row.ok is not False for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
