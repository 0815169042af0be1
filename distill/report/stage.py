"""`distill report`: one HTML file and a model card from what the other stages wrote."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from distill.recipe.schema import Recipe
from distill.report.gather import gather, manifest_digests
from distill.runs import Run, digest_of, file_digest, write_atomically


def run(recipe: Recipe, run: Run, *, console: Console) -> None:
    """Write `report.html` into the run's folder and a model card into `report/`."""
    target = run.path / "report.html"
    folder = run.stage("report")
    inputs = manifest_digests(recipe, run) | {"report": digest_of(recipe.report.model_dump(mode="json"))}
    inputs["page"] = _page_version()
    if folder.is_done(inputs) and target.is_file():
        console.print(f"report: done before, {target}")
        return
    from distill.report.model_card import model_card
    from distill.report.page import render_page

    run.path.mkdir(parents=True, exist_ok=True)
    folder.begin(inputs)
    found = gather(recipe, run)
    write_atomically(target, render_page(found))
    write_atomically(folder.path / "README.md", model_card(found))
    folder.finish(recipe, inputs, metrics={"variants": [v.name for v in found.variants], "html": target.name})
    console.print(f"report: {target}")


def _page_version() -> str:
    """Digest of the report's own source: a better page is made anew."""
    files = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".py", ".html"))
    return digest_of({p.name: file_digest(p) for p in files})
