"""`distill evaluate`: every variant on held-out tasks, and its distance from the teacher."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from distill.errors import DistillError
from distill.evaluate.compare import compare
from distill.evaluate.questions import tasks_version
from distill.recipe.schema import Evaluate, Recipe
from distill.runs import Run, StageFolder, digest_of, path_digest


def run(recipe: Recipe, run: Run, *, console: Console) -> None:
    """Evaluate the variants that are not done, each in `evaluate-<variant>/`, then compare them in `evaluate/`."""
    section = recipe.evaluate
    if section is None:
        raise DistillError("the recipe has no evaluate section", remedy="add one, e.g. `evaluate: {rows: 500}`")
    variants = chosen_variants(recipe, run)
    shared = shared_inputs(recipe, run, section)
    inputs = {name: {"model": _model_digest(run, name, path), **shared} for name, path in variants.items()}
    folders = {name: run.stage("evaluate", name) for name in variants}
    pending = [name for name in variants if not folders[name].is_done(inputs[name])]
    for name in variants:
        if name not in pending:
            console.print(f"evaluate {name}: done before, {result_line(folders[name])}")
    if pending:
        from distill.evaluate.session import Session  # torch and transformers, only where there is work

        session = Session(recipe, run, section, console)
        for name in pending:
            folder = folders[name]
            folder.begin(inputs[name])
            metrics, notes = session.evaluate(name, variants[name], folder.path)
            folder.finish(recipe, inputs[name], metrics=metrics, seed=section.seed, notes=notes)
            console.print(f"evaluate {name}: {result_line(folder)}")
    compare(recipe, run, list(variants))


def chosen_variants(recipe: Recipe, run: Run) -> dict[str, Path]:
    """The variants to evaluate, in the order of the stages. Raises DistillError where one is not made yet."""
    assert recipe.evaluate is not None
    wanted = recipe.evaluate.variants
    found = {name: path for name, path in run.variants().items() if wanted is None or name in wanted}
    if not found:
        raise DistillError(
            "there is no variant to evaluate",
            remedy="give the teacher's weights, or a student and train entries, in the recipe",
        )
    quantized = {quantizer.name for quantizer in recipe.quantize}
    for name, path in found.items():
        if name != "teacher" and not (path / "config.json").is_file():
            verb = "quantize" if name in quantized else "train"
            raise DistillError(f"{name} is not made yet: no model at {path}", remedy=f"run `distill {verb}` first")
    return found


def shared_inputs(recipe: Recipe, run: Run, section: Evaluate) -> dict[str, str]:
    """What decides every variant's result beside its model; which other variants are evaluated does not."""
    teacher = run.variants().get("teacher")
    return {
        "teacher": path_digest(teacher) if teacher is not None else "none",
        "evaluate": digest_of(section.model_dump(mode="json", exclude={"variants"})),
        "dtype": recipe.serve.dtype,
        "tasks": tasks_version(),
    }


def result_line(folder: StageFolder) -> str:
    """A finished variant in a few words."""
    metrics = folder.require().metrics
    accuracy = metrics["accuracy"]
    parts = [f"{accuracy['value']:.1%} of {accuracy['count']} held-out tasks"]
    parts += [f"{kind} {found['value']:.1%}" for kind, found in metrics["by_kind"].items()]
    parts.append(f"perplexity {metrics['perplexity']:.3f}")
    if metrics["kl"] is not None:
        parts.append(f"KL {metrics['kl']:z.4f}, agreement {metrics['agreement']:.1%}")
    if metrics.get("accept_length") is not None:
        parts.append(f"accept length {metrics['accept_length']:.2f}")
    return ", ".join(parts)


def _model_digest(run: Run, name: str, path: Path) -> str:
    """Digest of the stage that made the model, or of its files where no stage did (hashing a large model is slow)."""
    if name != "teacher":
        quantized = run.path / f"quantize-{name}"
        manifest = run.stage("quantize" if path.is_relative_to(quantized) else "train", name).manifest()
        if manifest is not None:
            return manifest.digest
    return path_digest(path)
