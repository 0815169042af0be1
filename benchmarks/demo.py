"""What a run of the demo came to: its manifests as JSON with the bars, and as the tables in README.md and docs/demo.md.

make demo
python -m benchmarks.demo --json benchmarks/results/demo_cpu_DATE.json --docs

Overrides that the run was started with are given again: `python -m benchmarks.demo evaluate.isolation=none`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Row, at_least, envelope, write_json
from benchmarks.model_card import replace_between
from distill.errors import DistillError
from distill.evaluate.statistics import paired_difference
from distill.recipe.load import load_recipe
from distill.records import read_parquet
from distill.runs import Run, write_atomically

STAGES = ("generate", "train", "quantize", "serve", "evaluate", "report")
DOCS = (Path("README.md"), Path("docs/demo.md"))  # the README shows recipes/demo.yaml alone
LOST_POINTS = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the run, print its bars, and write what was asked for; the exit code says whether all bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument(
        "--kept", type=float, default=0.75, help="the bar: share of the teacher's accuracy that is kept"
    )
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--docs", action="store_true", help=f"rewrite the tables of {' and '.join(map(str, DOCS))}")
    parser.add_argument("overrides", nargs="*", help="section.key=value, as given to `distill run`")
    options = parser.parse_args(arguments)
    run = Run(load_recipe(options.recipe, options.overrides))
    variants = {name: _variant(run, name) for name in run.variants()}
    seconds = _seconds(run)
    rows = list(_bars(run, variants, options.kept))
    for row in rows:
        print(f"{row.name}: {row.value:.3f} {row.unit} (bar {row.bar}: {'met' if row.ok else 'NOT met'})")
    command = shlex.join(["python", "-m", "benchmarks.demo", *_told(options)])
    details = {"recipe": str(options.recipe), "variants": variants, "stage_seconds": seconds}
    result = envelope(what=f"a run of {options.recipe}", command=command, rows=rows, details=details)
    if options.json is not None:
        write_json(options.json, result)
    if options.docs:
        for path in DOCS if run.recipe.name == "demo" else DOCS[1:]:
            text = path.read_text(encoding="utf-8")
            write_atomically(path, replace_between(text, f"{run.recipe.name}-numbers", _tables(result, path), path))
    return 0 if all(row.ok for row in rows) else 1


def _told(options: argparse.Namespace) -> list[str]:
    return ["--recipe", str(options.recipe), "--kept", str(options.kept), *options.overrides]


def _variant(run: Run, name: str) -> dict[str, Any]:
    """The measured numbers of a variant that the tables show."""
    quality = run.stage("evaluate", name).require().metrics
    speed = run.stage("serve", name).require().metrics
    return {
        "parameters": speed["parameters"],
        "weight_bytes": speed["weight_bytes"],
        "kv_bytes_per_token": speed["kv_bytes_per_token"],
        "accuracy": quality["accuracy"],
        "by_kind": quality["by_kind"],
        "perplexity": quality["perplexity"],
        "agreement": quality["agreement"],
        "kl": quality["kl"],
        "decode_tokens_per_second": speed["decode_tokens_per_second"],
        "prefill_tokens_per_second": speed["prefill_tokens_per_second"],
    }


def _seconds(run: Run) -> dict[str, float]:
    """Seconds of each stage, all its entries together, as their manifests say."""
    spent = dict.fromkeys(STAGES, 0.0)
    for path in sorted(run.path.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        if manifest["stage"] in spent:
            spent[manifest["stage"]] += manifest["seconds"]
    return spent


def _bars(run: Run, variants: dict[str, dict[str, Any]], kept: float) -> Iterator[Row]:
    teacher, final = variants["teacher"], run.recipe.train[-1].name
    student = variants[final]

    def share(key: str) -> float:
        return float(student[key]) / float(teacher[key])

    yield at_least(f"accuracy of {final} over the teacher's", _value(student) / _value(teacher), kept)
    yield _at_most("parameters over the teacher's", share("parameters"), 0.5)
    yield _at_most("KV bytes a token over the teacher's", share("kv_bytes_per_token"), 0.15)
    for quantizer in run.recipe.quantize:
        lost = -100 * paired_difference(*_paired(run, quantizer.name, quantizer.of or final)).mean
        if quantizer.method != "int8":
            yield _at_most(f"points of accuracy that {quantizer.name} loses", lost, LOST_POINTS, "points")


def _paired(run: Run, one: str, other: str) -> tuple[list[float], list[float]]:
    """Right or wrong, prompt by prompt, of two variants."""
    scores = []
    for name in (one, other):
        rows = read_parquet(run.stage("evaluate", name).path / "answers.parquet", columns=("id", "ok"))
        scores.append({row["id"]: float(row["ok"]) for row in rows})
    if scores[0].keys() != scores[1].keys():
        raise DistillError(f"{one} and {other} answered different tasks", remedy="run `distill evaluate` again")
    return [scores[0][key] for key in scores[0]], [scores[1][key] for key in scores[0]]


def _at_most(name: str, value: float, bar: float, unit: str = "share") -> Row:
    return Row(name=name, value=value, unit=unit, bar=bar, ok=value <= bar)


def _value(variant: dict[str, Any]) -> float:
    return float(variant["accuracy"]["value"])


def _tables(result: dict[str, Any], path: Path) -> str:
    lines = [*_origin(result), "", *_variants(result), "", *_bar_table(result)]
    if path.name != "README.md":
        lines += ["", *_stage_table(result)]
    return "\n".join(lines)


def _origin(result: dict[str, Any]) -> Iterator[str]:
    machine, versions = result["hardware"], result["versions"]
    count = result["details"]["variants"]["teacher"]["accuracy"]["count"]
    yield (
        f"One run on {_place(machine)} (torch {versions['torch']}, transformers "
        f"{versions['transformers']}, commit {result['commit']}), written by `{result['command']} --docs`; "
        f"{count} held-out tasks, 95% Wilson intervals."
    )


def _place(machine: dict[str, Any]) -> str:
    cores = f"{machine['cores']} cores of {machine['cpu']}"
    return f"one {machine['gpu']} beside {cores}" if machine["gpu"] else cores


def _variants(result: dict[str, Any]) -> Iterator[str]:
    yield "| variant | weights | KV a token | accuracy | instructions | code | KL to the teacher | decode tokens/s |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, one in result["details"]["variants"].items():
        accuracy, kinds = one["accuracy"], one["by_kind"]
        yield (
            f"| {name} | {one['weight_bytes'] / 2**20:.1f} MiB | {one['kv_bytes_per_token']:,} B "
            f"| {accuracy['value']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%}) "
            f"| {kinds['instruction']['value']:.1%} | {kinds['code']['value']:.1%} | {one['kl']:z.4f} "
            f"| {one['decode_tokens_per_second']:,.0f} |"
        )


def _bar_table(result: dict[str, Any]) -> Iterator[str]:
    yield "| bar | asked for | measured | met |"
    yield "|---|---:|---:|---|"
    for row in result["rows"]:
        sign = "at least" if "accuracy of" in row["name"] else "at most"
        shown = [f"{x:.1f}" if row["unit"] == "points" else f"{x:.1%}" for x in (row["bar"], row["value"])]
        yield f"| {row['name']} | {sign} {shown[0]} | {shown[1]} | {'yes' if row['ok'] else '**no**'} |"


def _stage_table(result: dict[str, Any]) -> Iterator[str]:
    yield "| stage | seconds |"
    yield "|---|---:|"
    spent = result["details"]["stage_seconds"]
    for stage, seconds in spent.items():
        yield f"| {stage} | {seconds:.0f} |"
    yield f"| all | {sum(spent.values()):.0f} |"


if __name__ == "__main__":
    sys.exit(main())
