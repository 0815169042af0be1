"""What the numbers say, in sentences: gains and losses that the data support, and those that they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from distill.report.format import percent, points, signed
from distill.report.gather import Gathered, Variant

Tone = Literal["good", "bad", "neutral"]
_SATURATED = 0.99
_TRUNCATED_SHARE = 0.01


@dataclass(frozen=True)
class Finding:
    """One sentence and how it is to be taken."""

    tone: Tone
    text: str


def findings(run: Gathered) -> list[Finding]:
    """All findings, the most important first."""
    return [*_kept(run), *_steps(run), *_objectives(run), *_quantized(run), *_caveats(run)]


def kept_share(run: Gathered) -> float | None:
    """The student's accuracy over the teacher's."""
    student, teacher = run.student, run.teacher
    if student is None or teacher is None or student.accuracy is None or teacher.accuracy is None:
        return None
    reference = teacher.accuracy["value"]
    return student.accuracy["value"] / reference if reference else None


def _kept(run: Gathered) -> Iterator[Finding]:
    student, teacher, kept = run.student, run.teacher, kept_share(run)
    if student is None or teacher is None or kept is None:
        return
    assert student.accuracy is not None and teacher.accuracy is not None
    difference = run.paired(student.name, "teacher", "accuracy")
    text = (
        f"{student.name} keeps {percent(kept)} of the teacher's accuracy:"
        f" {percent(student.accuracy['value'])} against {percent(teacher.accuracy['value'])}"
    )
    yield Finding("neutral", f"{text}{_interval(difference)}.")
    if teacher.accuracy["value"] >= _SATURATED and student.accuracy["high"] >= _SATURATED:
        yield Finding("neutral", "Task accuracy is saturated: compare the variants by KL to the teacher instead.")


def _steps(run: Gathered) -> Iterator[Finding]:
    """Each train entry against what it started from."""
    for variant in run.variants:
        if variant.role != "trained" or variant.of is None:
            continue
        difference = run.paired(variant.name, variant.of, "accuracy")
        if difference is None:
            continue
        label = f"{variant.name} ({variant.method})" if variant.name != variant.method else variant.name
        size = f"{points(difference['mean'])}{_interval(difference, parenthesis=True)}"
        effect = _effect(difference)
        if effect > 0:
            yield Finding("good", f"{label} improves on {variant.of} by {size}.{_kl_sentence(run, variant)}")
        elif effect < 0:
            yield Finding(
                "bad", f"{label} did not help: it is worse than {variant.of}, {size}.{_kl_sentence(run, variant)}"
            )
        else:
            text = f"{label} did not measurably change accuracy against {variant.of}: {size}."
            yield Finding("neutral", text + _kl_sentence(run, variant))


def _kl_sentence(run: Gathered, variant: Variant) -> str:
    """How the distance from the teacher moved, where it was measured on both sides."""
    assert variant.of is not None
    before = run.variant(variant.of)
    mine, other = variant.evaluated("kl"), before.evaluated("kl") if before is not None else None
    difference = run.paired(variant.name, variant.of, "kl")
    if mine is None or other is None or difference is None:
        return ""
    effect, before_kl, kl = _effect(difference), f"{other:.3g}", f"{mine:.3g}"
    if effect == 0 or before_kl == kl:
        return f" KL to the teacher does not measurably change ({before_kl}, then {kl} nats a token)."
    return f" KL to the teacher {'falls' if effect < 0 else 'rises'} from {before_kl} to {kl} nats a token."


def _objectives(run: Gathered) -> Iterator[Finding]:
    """kd against sft, where both started from the same model, so that the comparison is one of objectives."""
    trained = [variant for variant in run.variants if variant.role == "trained"]
    for kd in (variant for variant in trained if variant.method == "kd"):
        for sft in (variant for variant in trained if variant.method == "sft" and variant.of == kd.of):
            difference = run.paired(kd.name, sft.name, "accuracy")
            if difference is None:
                continue
            size = f"{points(difference['mean'])}{_interval(difference, parenthesis=True)}"
            effect = _effect(difference)
            verdict = "better than" if effect > 0 else "worse than" if effect < 0 else "not measurably different from"
            tone: Tone = "good" if effect > 0 else "bad" if effect < 0 else "neutral"
            yield Finding(tone, f"From the same start, {kd.name} is {verdict} {sft.name}: {size}. One seed.")


def _quantized(run: Gathered) -> Iterator[Finding]:
    well = []
    for variant in run.variants:
        if variant.flag is None:
            continue
        loss = f"{signed(variant.flag['points'])} points (± {1.96 * variant.flag['points_se']:.1f})"
        if variant.flagged:
            limit = variant.flag["limit"]
            yield Finding(
                "bad", f"{variant.name} is flagged: {loss} to {variant.flag['of']}, more than {limit:g} lost."
            )
        else:
            well.append(f"{variant.name} {loss}")
    if well:
        yield Finding("good", f"Quantization within the limit: {'; '.join(well)}.")


def _caveats(run: Gathered) -> Iterator[Finding]:
    unevaluated = [variant.name for variant in run.variants if variant.evaluation is None]
    unserved = [variant.name for variant in run.variants if variant.serving is None]
    if unevaluated:
        yield Finding("neutral", f"Not evaluated: {', '.join(unevaluated)}.")
    if unserved and len(unserved) < len(run.variants):
        yield Finding("neutral", f"Speed not measured: {', '.join(unserved)}.")
    elif unserved:
        yield Finding("neutral", "Speed was not measured in this run.")
    if run.teacher is None:
        yield Finding(
            "neutral", "The teacher's weights are not in the recipe, so nothing is compared with the teacher."
        )
    for variant in run.variants:
        cut, rows = variant.evaluated("truncated"), variant.evaluated("rows")
        if cut and rows and cut / rows > _TRUNCATED_SHARE:
            yield Finding(
                "neutral", f"{percent(cut / rows)} of {variant.name}'s answers hit the token limit unfinished."
            )
    for note in run.notes:
        yield Finding("neutral", note[0].upper() + note[1:] + ("" if note.endswith(".") else "."))


def _effect(difference: dict[str, Any]) -> int:
    """1 or -1 where the 95% interval excludes 0, else 0."""
    return 1 if difference["low"] > 0 else -1 if difference["high"] < 0 else 0


def _interval(difference: dict[str, Any] | None, *, parenthesis: bool = False) -> str:
    if difference is None:
        return ""
    low, high = signed(100 * difference["low"]), signed(100 * difference["high"])
    text = f"95% interval {low} to {high}, {difference['count']:,} prompts"
    return f" ({text})" if parenthesis else f", a paired difference of {points(difference['mean'])} ({text})"
