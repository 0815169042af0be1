"""What a student of another tokenizer learns from a teacher that is not sure: kd over spans beside sft, at equal steps.

    python -m benchmarks.aligned_quality --teacher ../shared/weights/stories260k [--quick] [--json PATH]

The teacher writes stories; half of them are learnt by a student with random weights and a byte-level tokenizer of 1,024
tokens that is trained on them. Reported are nats a byte on the other stories, which no tokenizer changes, of students
trained by sft and by kd with `alignment` in both ways, each at several seeds, and of the teacher itself.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import Row, envelope, write_json
from distill.model.load import load_model, load_tokenizer
from distill.model.tokenizer import train_tokenizer
from distill.recipe.schema import Recipe
from distill.records import INSTRUCTION, write_parquet
from distill.runs import Run
from distill.train import stage
from distill.train.batches import read_sequences

TEMPLATE = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}{{ eos_token }}"
TEMPLATE += "{% endif %}{% endfor %}"
WAYS: dict[str, dict[str, Any]] = {
    "sft": {"objective": "sft"},
    "kd, prefix": {"objective": "kd", "alignment": {}},
    "kd, uld": {"objective": "kd", "alignment": {"unmatched": "uld"}},
}


@torch.no_grad()
def stories(teacher: Path, count: int, tokens: int) -> list[str]:
    """What the teacher writes at temperature 1."""
    torch.manual_seed(0)
    model, tokenizer = load_model(teacher, dtype="float32", device="cpu"), load_tokenizer(teacher)
    found: list[str] = []
    while len(found) < count:
        start = torch.full((min(100, count), 1), tokenizer.bos_token_id)
        made = model.generate(
            start, do_sample=True, top_k=0, max_new_tokens=tokens, pad_token_id=tokenizer.eos_token_id
        )
        found += [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]
    return found[:count]


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Teacher with a template, student with random weights, stories to learn and to be measured on."""
    shutil.copytree(options.teacher, folder / "teacher", copy_function=shutil.copy)
    (folder / "teacher/chat_template.jinja").write_text(TEMPLATE)
    texts = stories(folder / "teacher", 2 * options.stories, options.length)
    for name, part in (("learnt", texts[: options.stories]), ("other", texts[options.stories :])):
        said = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in part]
        write_parquet(folder / f"{name}.parquet", [{"messages": messages} for messages in said], INSTRUCTION)
    tokens = train_tokenizer(texts[: options.stories], vocab_size=1024, max_positions=512)
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            max_position_embeddings=512,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(folder / f"student-{seed}")
        tokens.save_pretrained(folder / f"student-{seed}")


def train(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Nats a byte of every way's student."""
    common = {"init": "student", "data": [str(folder / "learnt.parquet")], "batch_size": 16, "micro_batch_size": 8}
    common |= {"max_steps": options.steps, "learning_rate": options.rate, "max_length": 384, "seed": seed}
    names = {way: f"way-{number}" for number, way in enumerate(WAYS)}
    document = {
        "name": f"seed-{seed}",
        "output_dir": str(folder / "runs"),
        "teacher": {"kind": "embedded", "model": str(folder / "teacher")},
        "student": {"model": str(folder / f"student-{seed}"), "dtype": "float32"},
        "train": [{**common, "name": names[way], **settings} for way, settings in WAYS.items()],
    }
    recipe = Recipe.model_validate_json(json.dumps(document))
    stage.run(recipe, Run(recipe), console=Console(file=io.StringIO()))
    return {way: nats_a_byte(Run(recipe).checkpoint(name), folder / "other.parquet") for way, name in names.items()}


@torch.no_grad()
def nats_a_byte(folder: Path, data: Path) -> float:
    """Of the stories, their ends not counted."""
    model, tokenizer = load_model(folder, dtype="float32", device="cpu"), load_tokenizer(folder)
    rows = read_sequences(tokenizer, [data], 1024)
    total = size = 0.0
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        places = [place for place, label in enumerate(labels) if label >= 0 and label != tokenizer.eos_token_id]
        log_q = torch.log_softmax(model(torch.tensor([ids])).logits[0, [place - 1 for place in places]], -1)
        total -= float(log_q.gather(-1, torch.tensor([[ids[place]] for place in places])).sum())
        size += len(tokenizer.decode([ids[place] for place in places]).encode())
    return total / size


def main() -> None:
    """Measures, prints, and writes the JSON that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True, help="a small model of stories")
    parser.add_argument("--stories", type=int, default=150, help="to learn from; as many to be measured on")
    parser.add_argument("--length", type=int, default=150, help="of a story, in the teacher's tokens")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few stories and steps, one seed: shows that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.stories, options.steps, options.seeds, options.length = 30, 3, 1, 60
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options)
        teacher = nats_a_byte(folder / "teacher", folder / "other.parquet")
        found = [train(folder, seed, options) for seed in range(options.seeds)]
    rows = [Row("teacher", teacher, "nats/byte")]
    for way in WAYS:
        values = [one[way] for one in found]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        rows.append(Row(way, fmean(values), "nats/byte", peer=fmean(one["sft"] for one in found)))
        print(f"{way:34s} {fmean(values):.4f}{spread} nats/byte")
    print(f"{'teacher':34s} {teacher:.4f} nats/byte")
    if options.json is not None:
        details = {
            "seeds": found,
            **{key: value for key, value in vars(options).items() if isinstance(value, int | float)},
        }
        command = f"python -m benchmarks.aligned_quality --teacher {options.teacher.name}"
        write_json(options.json, envelope(what="aligned quality", command=command, rows=rows, details=details))


if __name__ == "__main__":
    main()
