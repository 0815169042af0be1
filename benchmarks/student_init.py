"""What a student is worth by how it begins: random weights, layers dropped evenly, parts dropped by measured
importance, and key/value heads pooled by their mean or weighted, before and after the same steps of distillation.

    python -m benchmarks.student_init --teacher ../shared/weights/stories260k --sampled 1500 --json PATH
    python -m benchmarks.student_init --teacher FOLDER --text FOLDER --rows 32 --layers 6 --heads 6 --kv-heads 1

Depth is cut to `--layers`; the width students keep `--wide-layers` and `--heads` and as many neurons as make the same
number of parameters, or all layers and as many channels; the pooled ones keep all but KV heads. Each learns with the
teacher's forward KL at the best of `--rates` for it (first seed, by rows that are in neither of the other parts), then
with further seeds. Text is a folder with train.parquet and validation.parquet, or a file with a column `text`, a tenth
of whose rows is held out; or `--sampled` rows that the teacher writes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.common import Row, envelope, write_json
from benchmarks.student_init_text import Labels, Text, every_token, read_text, sampled_text
from distill.model.calibration import Batch, pad_batches
from distill.model.load import load_model, load_tokenizer
from distill.model.student import cut_down
from distill.objectives.divergences import IGNORED, Objective
from distill.objectives.head import Head, head_loss
from distill.quiet import quiet
from distill.recipe.prune import Prune
from distill.recipe.teacher import Student

GROUPS = ("depth", "width", "kv")
RANDOM, EVEN, MEAN = "random weights", "layers evenly", "KV heads by mean"


@dataclass(frozen=True)
class Init:
    """One way to begin; `group` names those of equal size that are compared."""

    name: str
    group: str
    student: Student
    random: bool = False


@dataclass(frozen=True)
class Quality:
    """On held-out rows, nats a token: forward KL to the teacher, and cross entropy on the text."""

    kl: float
    ce: float


def inits(teacher: PreTrainedModel, options: argparse.Namespace) -> list[Init]:
    """Every student of the comparison."""
    depth = {"model": options.teacher, "layers": options.layers}
    wide = {"model": options.teacher, "layers": options.wide_layers, "heads": options.heads}
    wide["intermediate_size"] = equal_neurons(teacher, options)
    pooled = {"model": options.teacher, "kv_heads": options.kv_heads}
    found = [
        Init(RANDOM, "depth", Student(**depth), random=True),
        Init(EVEN, "depth", Student(**depth)),
    ]
    for layers_by in ("block_importance", "loss"):
        for iterative in (False, True):
            prune = Prune(layers_by=layers_by, iterative=iterative)
            name = f"layers by {layers_by.replace('_', ' ')}" + (", one by one" if iterative else "")
            found.append(Init(name, "depth", Student(**depth, prune=prune)))
    for width_by in ("activation", "contribution"):
        name = f"fewer layers, heads and neurons by {width_by}"
        prune = Prune(width_by=width_by)
        found.append(Init(name, "width", Student(**wide, prune=prune)))
    narrow = {"model": options.teacher, "hidden_size": equal_channels(teacher, options)}
    found.append(Init("channels by activation", "width", Student(**narrow, prune=Prune())))
    found.append(Init(RANDOM + ", narrow", "width", Student(**wide, prune=Prune()), random=True))
    found.append(Init(RANDOM + ", few KV heads", "kv", Student(**pooled), random=True))
    found.append(Init(MEAN, "kv", Student(**pooled)))
    for kv_pooling in ("weighted", "aligned"):
        prune = Prune(kv_pooling=kv_pooling)
        found.append(Init(f"KV heads {kv_pooling}", "kv", Student(**pooled, prune=prune)))
    return found


def equal_neurons(teacher: PreTrainedModel, options: argparse.Namespace) -> int:
    """Neurons with which the width students have as many parameters as the depth students, or just fewer."""
    config = teacher.config
    layer = sum(parameter.numel() for parameter in teacher.model.layers[0].parameters())
    budget = options.layers * layer / options.wide_layers
    kept = layer - 3 * config.hidden_size * config.intermediate_size
    head = config.head_dim * config.hidden_size * (2 if config.num_key_value_heads < config.num_attention_heads else 4)
    kept -= (config.num_attention_heads - options.heads) * head
    return min(config.intermediate_size, int((budget - kept) / (3 * config.hidden_size)))


def equal_channels(teacher: PreTrainedModel, options: argparse.Namespace) -> int:
    """Channels with which a student of all layers has as many parameters as the depth students, or just fewer: all
    matrices of a Llama are proportional to them."""
    layer = sum(parameter.numel() for parameter in teacher.model.layers[0].parameters())
    whole = sum(parameter.numel() for parameter in teacher.parameters())
    gone = (len(teacher.model.layers) - options.layers) * layer
    channels = int(teacher.config.hidden_size * (whole - gone) / whole)
    return channels - channels % int(teacher.config.num_attention_heads)  # as a Llama's must be


def make(init: Init, options: argparse.Namespace, calibration: Sequence[Batch]) -> tuple[Any, dict[str, Any]]:
    """The student at its beginning, and what it is."""
    with tempfile.TemporaryDirectory() as folder:
        source = load_model(options.teacher, dtype="float32")
        made = cut_down(source, init.student, calibration, Path(folder), dtype=torch.float32)
        student = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    report = {name: content for name, content in made.report.as_json().items() if name == "layers"}
    return student.to(device()), {"parameters": made.after.parameters, "layers": list(made.layers), **report}


def copy_of(student: Any, init: Init, seed: int) -> Any:
    """To be trained; random weights are others for each seed."""
    if not init.random:
        return copy.deepcopy(student)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(student.config, dtype=torch.float32).to(device())


def heal(
    student: Any,
    teacher: Any,
    rows: Tensor,
    options: argparse.Namespace,
    *,
    rate: float,
    seed: int,
    labels: Labels = every_token,
) -> None:
    """`options.steps` steps of AdamW on the teacher's forward KL, cosine schedule with a tenth of warm-up."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(_epochs(rows, options))])
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.95))
    warmup = max(1, options.steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, options.steps - warmup), eta_min=rate / 20),
        ],
        milestones=[warmup],
    )
    student.train()
    for step in range(options.steps):
        ids = rows[order[step * options.rows : (step + 1) * options.rows]].to(device())
        loss, count = divergence(student, teacher, ids, labels(ids))
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    student.eval()


def divergence(student: Any, teacher: Any, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the forward KL over the tokens that count, and their number, 1 where there are none."""
    with torch.autocast("cuda", torch.bfloat16, enabled=ids.is_cuda):
        with torch.no_grad():
            theirs = teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        ours = student.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        sums = head_loss(ours, _head(student), theirs, _head(teacher), labels.flatten(), Objective("forward_kl"))
    return sums.loss, (labels != IGNORED).sum().clamp(min=1)


@torch.no_grad()
def quality(
    student: Any, teacher: Any, rows: Tensor, options: argparse.Namespace, labels: Labels = every_token
) -> Quality:
    """On all rows, in float32."""
    kl = ce = count = 0.0
    for ids in rows.split(options.rows):
        ids = ids.to(device())
        next_ids = labels(ids)
        counts = next_ids != IGNORED
        theirs = torch.log_softmax(teacher(ids).logits[:, :-1][counts].float(), -1)
        ours = torch.log_softmax(student(ids).logits[:, :-1][counts].float(), -1)
        kl += float((theirs.exp() * (theirs - ours)).sum())
        ce -= float(ours.gather(-1, next_ids[counts][:, None]).sum())
        count += len(ours)
    return Quality(kl / count, ce / count)


def compare(options: argparse.Namespace, keep: Callable[[list[Row], dict[str, Any]], None]) -> None:
    """Make, heal and measure every student; `keep` gets all rows and what else is worth keeping after each of them."""
    teacher: Any = load_model(options.teacher, dtype="float32").to(device())  # type: ignore[arg-type]
    text = text_of(teacher, options)
    calibration = pad_batches(text.train[: options.calibration_rows].tolist(), max_length=options.row_tokens)
    theirs = quality(teacher, teacher, text.held_out, options)
    shapes = {"train": list(text.train.shape), "tune": list(text.tune.shape), "held_out": list(text.held_out.shape)}
    rows, runs = [Row("teacher, cross entropy", theirs.ce, "nats/token")], []
    for init in (init for init in inits(teacher, options) if init.group in options.groups):
        run = _one(init, teacher, text, calibration, options)
        runs.append(run)
        kls = [each["kl"] for each in run["after"]]
        ce = statistics.fmean(each["ce"] for each in run["after"])
        label = f"{init.group}: {init.name}"
        rows.append(Row(f"{label}, KL before", run["before"]["kl"], "nats/token"))
        rows.append(Row(f"{label}, KL after", statistics.fmean(kls), "nats/token"))
        rows.append(Row(f"{label}, cross entropy after", ce, "nats/token"))
        print(
            f"{label:<72} {run['parameters']:>11,}  KL {run['before']['kl']:7.4f} -> {statistics.fmean(kls):.4f}"
            f" ({min(kls):.4f}..{max(kls):.4f})  CE {ce:.4f}  rate {run['rate']:g}",
            flush=True,
        )
        keep(rows + verdicts(runs), {"text": {"of": text.of, **shapes}, "teacher": vars(theirs), "runs": runs})


def _one(init: Init, teacher: Any, text: Text, calibration: Sequence[Batch], options: argparse.Namespace) -> Any:
    """One way to begin: its quality before any step, and after, at its best rate, with every seed."""
    started = time.monotonic()
    student, about = make(init, options, calibration)
    before = quality(copy_of(student, init, 0), teacher, text.held_out, options)

    def healed(rate: float, seed: int) -> Any:
        model = copy_of(student, init, seed)
        heal(model, teacher, text.train, options, rate=rate, seed=seed)
        return model

    trained = {rate: healed(rate, 0) for rate in options.rates}
    tuned = {rate: quality(model, teacher, text.tune, options).kl for rate, model in trained.items()}
    best = min(tuned, key=lambda rate: tuned[rate])
    after = [quality(trained[best], teacher, text.held_out, options)]
    after += [quality(healed(best, seed), teacher, text.held_out, options) for seed in range(1, options.seeds)]
    return {
        "name": init.name,
        "group": init.group,
        **about,
        "rate": best,
        "tuned": {f"{rate:g}": kl for rate, kl in tuned.items()},
        "before": vars(before),
        "after": [vars(each) for each in after],
        "seconds": time.monotonic() - started,
    }


def verdicts(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """KL after healing of each beside that of even layers, or of the plain mean, as mean ratios over the same seeds."""
    rows = []
    by_name = {run["name"]: run for run in runs}
    for run in runs:
        peer = by_name.get(MEAN if run["group"] == "kv" else EVEN)
        if peer is None or run is peer:
            continue
        ratios = [mine["kl"] / other["kl"] for mine, other in zip(run["after"], peer["after"], strict=True)]
        ours, theirs = (statistics.fmean(each["kl"] for each in each_run["after"]) for each_run in (run, peer))
        name = f"{run['group']}: {run['name']}, KL after, beside {peer['name']}"
        rows.append(Row(name, ours, "nats/token", peer=theirs, ratio=statistics.fmean(ratios)))
    return rows


def text_of(teacher: Any, options: argparse.Namespace) -> Text:
    tokenizer = load_tokenizer(options.teacher)
    if options.sampled:
        return sampled_text(teacher, tokenizer, rows=options.sampled, row_tokens=options.row_tokens)
    needed = options.steps * options.rows + 2 * options.held_out
    return read_text(options.text, tokenizer, row_tokens=options.row_tokens, rows=needed, held_out=options.held_out)


def _head(model: Any) -> Head:
    return Head(model.get_output_embeddings().weight)


def _epochs(rows: Tensor, options: argparse.Namespace) -> int:
    return -(-options.steps * options.rows // len(rows))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder of a Llama, Mistral, Qwen2 or Qwen3")
    parser.add_argument("--text", type=Path, default=None)
    parser.add_argument("--sampled", type=int, default=0, help="rows that the teacher writes, instead of --text")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--layers", type=int, default=3, help="of the depth students")
    parser.add_argument("--wide-layers", type=int, default=4, help="of the width students")
    parser.add_argument("--heads", type=int, default=4, help="query heads of the width students")
    parser.add_argument("--kv-heads", type=int, default=1, help="of the pooled students")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=8, help="in a step")
    parser.add_argument("--row-tokens", type=int, default=256)
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-3, 3e-3))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calibration-rows", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=64, help="rows of text held out")
    parser.add_argument("--quick", action="store_true", help="few steps and rows: shows that it runs, no result")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    if (options.text is None) == (options.sampled == 0):
        parser.error("give either --text or --sampled")
    if options.quick:
        options.steps, options.seeds, options.rates, options.held_out = 3, 1, (1e-3,), 8
        options.calibration_rows, options.row_tokens, options.sampled = 8, 64, min(options.sampled, 48)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print it."""
    options = _options(arguments)
    command = "python -m benchmarks.student_init " + " ".join(arguments or sys.argv[1:])

    def keep(rows: list[Row], details: dict[str, Any]) -> None:
        if options.json:
            write_json(options.json, envelope(what="how a student begins", command=command, rows=rows, details=details))

    with quiet():
        compare(options, keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
