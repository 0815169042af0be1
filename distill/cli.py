"""The command line: one verb is one stage. Stages are imported when their verb runs, so that `--help` stays instant."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console

from distill.errors import EXIT_BAD_RECIPE, EXIT_FAILURE, DistillError, RecipeError, system_trouble

if TYPE_CHECKING:
    from distill.recipe.schema import Recipe
    from distill.runs import Run

app = typer.Typer(
    name="distill",
    help="Distil a large language model into a small one: one recipe, one verb a stage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_INTERRUPTED = 128 + signal.SIGINT
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="a recipe's YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="changes to the recipe")]


def _console() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def _load(path: Path, overrides: Sequence[str] | None) -> tuple[Recipe, Run]:
    from distill.recipe.load import load_recipe
    from distill.runs import Run

    recipe = load_recipe(path, overrides or ())
    return recipe, Run(recipe)


def _is_main_process() -> bool:
    """Under `accelerate launch` every process runs the same verb; only the first one locks and speaks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _teacher_url(recipe: Recipe, run: Run) -> Iterator[Callable[[], str | None]]:
    """A function that gives the teacher's base URL, starting the embedded teacher at its first call."""
    from distill.recipe.teacher import EmbeddedTeacher

    teacher = recipe.teacher
    with ExitStack() as stack:
        started: list[str] = []

        def url() -> str | None:
            if not isinstance(teacher, EmbeddedTeacher):
                return teacher.base_url
            if teacher.backend == "transformers":
                return None
            if not started:
                from distill.serve.child import embedded_server

                server = embedded_server(
                    teacher.model,
                    dtype=teacher.dtype,
                    max_batch=teacher.max_concurrency,
                    kv_gib=recipe.serve.kv_gib,
                    log_path=run.path / "teacher-server.log",
                )
                started.append(stack.enter_context(server))
            return started[0]

        yield url


@app.command()
def plan(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="a recipe's YAML file")] = None,
    overrides: Overrides = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="list the GPUs known by name")] = False,
) -> None:
    """Say what a recipe will cost: tokens, dollars, bytes, and the batch a GPU is best used at."""
    from distill.plan import stage

    if gpus or recipe is None:
        stage.print_gpus(_console())
        return
    loaded, run = _load(recipe, overrides)
    stage.run(loaded, run, console=_console())


@app.command()
def generate(
    recipe: RecipePath,
    overrides: Overrides = None,
    rows: Annotated[int | None, typer.Option(min=1, help="preview: only so many prompts a job, shown")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="only this part of each job, e.g. 2/8")] = None,
    merge: Annotated[int | None, typer.Option(min=1, metavar="N", help="join N finished shards")] = None,
) -> None:
    """Ask the teacher for the recipe's datasets; a restart asks only what was never answered."""
    from distill.generate import stage
    from distill.generate.shards import parse_shard

    loaded, run = _load(recipe, overrides)
    if sum(option is not None for option in (rows, shard, merge)) > 1:
        raise DistillError("--rows, --shard and --merge do not go together", remedy="give one of them")
    if merge is not None:
        from distill.generate.merge import merge as merge_shards

        with run.lock():
            merge_shards(loaded, run, merge, console=_console())
        return
    if shard is not None:
        from distill.runs import Run

        part = parse_shard(shard)
        run = Run(loaded, shard=part.folder)
        with run.lock(), _teacher_url(loaded, run) as url:
            stage.run(loaded, run, base_url=url, console=_console(), shard=part)
        return
    with run.lock(), _teacher_url(loaded, run) as url:
        stage.run(loaded, run, base_url=url, console=_console(), rows=rows)


@app.command()
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    entry: Annotated[str | None, typer.Option(help="only this train entry")] = None,
) -> None:
    """Train the student, entry by entry; also under `accelerate launch -m distill train RECIPE`."""
    from distill.train import stage

    loaded, run = _load(recipe, overrides)
    with ExitStack() as stack:
        if _is_main_process():
            stack.enter_context(run.lock())
        url = stack.enter_context(_teacher_url(loaded, run))
        stage.run(loaded, run, console=_console(), entry=entry, base_url=url)


@app.command()
def signals(
    recipe: RecipePath,
    overrides: Overrides = None,
    entry: Annotated[str | None, typer.Option(help="only this train entry's")] = None,
) -> None:
    """Write the teacher's signals that kd entries store, without training; `train` does it where they are missing."""
    from distill.train import stage

    loaded, run = _load(recipe, overrides)
    with run.lock(), _teacher_url(loaded, run) as url:
        stage.write_signals(loaded, run, console=_console(), entry=entry, base_url=url)


@app.command()
def quantize(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Quantize the trained student: NF4, LLM.int8(), GPTQ, AWQ."""
    from distill.quantize import stage

    loaded, run = _load(recipe, overrides)
    with run.lock():
        stage.run(loaded, run, console=_console())


@app.command()
def serve(
    target: Annotated[str, typer.Argument(metavar="MODEL|RECIPE", help="a model folder or hub id, or a recipe")],
    overrides: Overrides = None,
    variant: Annotated[str | None, typer.Option(help="with a recipe: which variant; default the last")] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on; default loopback")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free one; default 8000")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="variable with the key that clients must send")] = None,
    model_name: Annotated[str | None, typer.Option(help="name under /v1/models; default the target")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="default: the recipe's, else as stored")] = None,
    device: Annotated[Device, typer.Option()] = "auto",
    max_batch: Annotated[int | None, typer.Option(min=1, help="sequences decoded together")] = None,
    kv_gib: Annotated[float | None, typer.Option(min=0.001, help="memory for the KV cache, in GiB")] = None,
    kv_dtype: Annotated[
        Literal["auto", "int8", "fp8"] | None, typer.Option(help="8 bits: half the bytes, not quite the same text")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(min=1, help="choices open at once; beyond it 503")] = None,
    draft: Annotated[str | None, typer.Option(help="small model that guesses for the served one")] = None,
    draft_tokens: Annotated[int | None, typer.Option(min=1, max=64, help="guessed at a time; default 4")] = None,
    backend: Annotated[Literal["distill", "vllm"], typer.Option(help="our engine, or vLLM's command")] = "distill",
    tensor_parallel: Annotated[
        bool, typer.Option("--tensor-parallel", help="under torchrun: the model over all its processes")
    ] = False,
    ready_file: Annotated[Path | None, typer.Option(help="written with the base URL once it answers")] = None,
    die_with_parent: Annotated[
        bool, typer.Option("--die-with-parent", help="stop when the parent process ends")
    ] = False,
) -> None:
    """Serve a model over the OpenAI protocol until stopped."""
    from distill.serve.target import launched_processes, resolve

    flags: dict[str, object] = {"host": host, "port": port, "api_key_env": api_key_env, "dtype": dtype}
    flags |= {"max_batch": max_batch, "kv_gib": kv_gib, "kv_dtype": kv_dtype, "max_queue": max_queue}
    flags |= {"draft": draft, "draft_tokens": draft_tokens}
    chosen = resolve(target, overrides=overrides or (), variant=variant, model_name=model_name, flags=flags)
    settings, key = chosen.settings, chosen.api_key()
    if backend == "vllm":
        from distill.serve.vllm import exec_vllm

        if device != "auto" or ready_file is not None or die_with_parent or tensor_parallel:
            raise DistillError(
                "--device, --ready-file, --die-with-parent and --tensor-parallel are of our own engine",
                remedy="leave them out with vllm",
            )
        exec_vllm(chosen.path, model_name=chosen.name, settings=settings, api_key=key, environment=os.environ)
    from distill.serve.server import follow_model, serve_model

    rank, num_shards = launched_processes() if tensor_parallel else (0, 1)
    if rank:
        follow_model(chosen.path, dtype=settings.dtype, device=device, settings=settings, num_shards=num_shards)
        return
    try:
        serve_model(
            chosen.path,
            host=settings.host,
            port=settings.port,
            api_key=key,
            model_name=chosen.name,
            dtype=settings.dtype,
            device=device,
            settings=settings,
            ready_file=ready_file,
            die_with_parent=die_with_parent,
            num_shards=num_shards,
        )
    except KeyboardInterrupt:  # how a server is meant to end
        typer.echo("stopped", err=True)


@app.command()
def bench(
    target: Annotated[str, typer.Argument(metavar="URL|MODEL", help="a server, or a model folder or hub id to serve")],
    rate: Annotated[
        list[float] | None, typer.Option(min=0.001, help="requests/s, again for each; default: four")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="requests at each rate")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="tokens of a prompt")] = 128,
    max_tokens: Annotated[int, typer.Option(min=2, help="tokens of an answer")] = 64,
    seed: Annotated[int, typer.Option(help="of prompts and arrivals")] = 0,
    json_path: Annotated[Path | None, typer.Option("--json", help="where to write all numbers")] = None,
    plot_path: Annotated[Path | None, typer.Option("--plot", help="where to draw, as .png, .svg or .pdf")] = None,
    model_name: Annotated[str | None, typer.Option(help="the model to ask for; default the server's first")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="variable with the server's key")] = None,
    dtype: Annotated[Dtype, typer.Option(help="of a MODEL")] = "auto",
    device: Annotated[Device, typer.Option(help="of a MODEL")] = "auto",
    max_batch: Annotated[int | None, typer.Option(min=1, help="of a MODEL: sequences decoded together")] = None,
    kv_gib: Annotated[float | None, typer.Option(min=0.001, help="of a MODEL: memory for the KV cache")] = None,
) -> None:
    """Measure a server under load: time to first token, time between tokens, throughput, use of the machine."""
    from distill.runs import write_atomically
    from distill.serve.bench import run as benchmark
    from distill.serve.bench import show
    from distill.serve.bench.load import Workload

    key = os.environ.get(api_key_env) if api_key_env else None
    if api_key_env and not key:
        raise DistillError(f"the environment variable {api_key_env} is not set", remedy="set it to the server's key")
    if plot_path is not None:
        show.check_plot(plot_path)
    for path in (json_path, plot_path):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    options = benchmark.ModelOptions(dtype, device, max_batch, kv_gib)
    workload = Workload(requests, prompt_tokens, max_tokens, seed)
    with benchmark.served(target, model_name=model_name, api_key=key, options=options) as server:
        tell = _console().print if sys.stderr.isatty() else (lambda _: None)
        result = benchmark.bench(target, server, workload, rates=rate or (), tell=tell)
    typer.echo(show.table(result))
    if json_path is not None:
        write_atomically(json_path, json.dumps(result.document(), indent=1) + "\n")
    if plot_path is not None:
        show.plot(result, plot_path)


@app.command()
def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Measure every variant on held-out tasks, and its distance from the teacher."""
    from distill.evaluate import stage

    loaded, run = _load(recipe, overrides)
    with run.lock():
        stage.run(loaded, run, console=_console())


@app.command()
def report(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Write the HTML report of a run."""
    from distill.report import stage

    loaded, run = _load(recipe, overrides)
    with run.lock():
        stage.run(loaded, run, console=_console())


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run the whole recipe; finished stages are skipped, an interrupted one goes on where it was."""
    loaded, folder = _load(recipe, overrides)
    console = _console()
    started = time.monotonic()
    with folder.lock():
        _run_stages(loaded, folder, console)
    console.print(f"done in {time.monotonic() - started:.0f} s; report: {folder.path / 'report.html'}")


def _run_stages(recipe: Recipe, run: Run, console: Console) -> None:
    from distill.plan import stage as plan_stage

    console.rule("plan", align="left")
    plan_stage.run(recipe, run, console=console)
    if recipe.generate:
        from distill.generate import stage as generate_stage

        console.rule("generate", align="left")
        with _teacher_url(recipe, run) as url:
            generate_stage.run(recipe, run, base_url=url, console=console)
    if recipe.train:
        from distill.train import stage as train_stage

        console.rule("train", align="left")
        with _teacher_url(recipe, run) as url:
            train_stage.run(recipe, run, console=console, base_url=url)
    if recipe.quantize:
        from distill.quantize import stage as quantize_stage

        console.rule("quantize", align="left")
        quantize_stage.run(recipe, run, console=console)
    if recipe.train:
        from distill.serve import stage as serve_stage

        console.rule("serve", align="left")
        serve_stage.run(recipe, run, console=console)
    if recipe.evaluate is not None:
        from distill.evaluate import stage as evaluate_stage

        console.rule("evaluate", align="left")
        evaluate_stage.run(recipe, run, console=console)
    from distill.report import stage as report_stage

    console.rule("report", align="left")
    report_stage.run(recipe, run, console=console)


@app.command()
def check(
    recipes: Annotated[list[Path] | None, typer.Argument(metavar="RECIPE...", help="recipes to validate")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of a recipe")] = False,
) -> None:
    """Validate recipes; every mistake is listed as file:line:col. Exit code 2 if there is one."""
    from distill.recipe.load import load_recipe
    from distill.recipe.schema import Recipe

    if schema:
        typer.echo(json.dumps(Recipe.model_json_schema(), indent=1))
        return
    if not recipes:
        raise DistillError("no recipe named", remedy="distill check recipes/*.yaml")
    failed = False
    for path in recipes:
        try:
            load_recipe(path)
        except RecipeError as error:
            failed = True
            typer.echo(str(error), err=True)
        else:
            typer.echo(f"{path}: ok")
    if failed:
        raise typer.Exit(EXIT_BAD_RECIPE)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="also check this recipe's teacher")] = None,
) -> None:
    """Check this machine: versions, devices, sandbox, disk, teacher; each problem with its remedy."""
    from distill.plan.doctor import examine

    loaded = _load(recipe, None)[0] if recipe is not None else None
    if not examine(loaded, console=_console()):
        raise typer.Exit(EXIT_FAILURE)


def _terminate(_signal: int, _frame: object) -> None:
    """SIGTERM unwinds like Ctrl-C, so that children stop and files close."""
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """Entry point: user errors are one message and an exit code, never a traceback."""
    # OpenMP threads that wait for each other spin for milliseconds by default and so take the cores from whoever else
    # needs them (the embedded teacher and its client share them): beside one busy process on 2 cores, training slows
    # many times over. A short spin keeps most of the speed on an idle machine. Read when torch loads.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except DistillError as error:
        _fail(error)
    except SystemExit as done:
        if done.code == _INTERRUPTED:  # so typer ends on Ctrl-C, and says nothing
            typer.echo("interrupted; the same command goes on where it was", err=True)
        raise
    except Exception as error:
        trouble = system_trouble(error)
        if trouble is None:
            raise
        _fail(trouble)


def _fail(error: DistillError) -> NoReturn:
    typer.echo(str(error) if isinstance(error, RecipeError) else f"error: {' '.join(str(error).split())}", err=True)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
