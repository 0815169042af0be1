"""Where metrics go: always a JSONL file in the stage's folder, and Weights & Biases when the recipe asks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from distill.errors import DistillError
from distill.runs import write_atomically

if TYPE_CHECKING:
    import wandb

METRICS = "metrics.jsonl"
Number = float | int
WandbMode = Literal["online", "offline", "off"]


class Tracker:
    """Metrics of one stage. Only the process that writes makes one; use it as a context manager.

    `config` is what the recipe says of the stage: recipes hold names of environment variables and no secrets.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        run_folder: Path,
        wandb_mode: WandbMode = "off",
        project: str = "distill",
        run_id: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / METRICS
        self._handle = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__
        self._wandb: wandb.Run | None = None
        if wandb_mode != "off":
            self._wandb = _start_wandb(wandb_mode, project, name, run_folder, run_id, config or {})

    def log(self, metrics: Mapping[str, Number | str], *, step: int) -> None:
        """One line, on disk when this returns to the operating system."""
        self._handle.write(json.dumps({**metrics, "step": step}) + "\n")
        self._handle.flush()
        if self._wandb is not None:
            self._wandb.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        """Drop lines after `step`: training goes on from there and writes them again."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        self._handle.close()
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._handle = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def artifact(self, name: str, kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
        """Link a result: W&B keeps its name, kind, digests and size, and a reference to the folder, not the bytes."""
        if self._wandb is None:
            return
        import wandb

        made = wandb.Artifact(_artifact_name(name), type=kind, metadata=dict(metadata))
        made.add_reference(path.resolve().as_uri(), checksum=False)
        self._wandb.log_artifact(made)

    def uses(self, name: str, kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
        """Name an input, so that the lineage reads dataset -> checkpoint. Offline runs keep it in their config."""
        if self._wandb is None:
            return
        inputs = {**dict(self._wandb.config).get("inputs", {}), name: {"kind": kind, **metadata}}
        self._wandb.config.update({"inputs": inputs}, allow_val_change=True)
        if not self._wandb.offline:
            import wandb

            used = wandb.Artifact(_artifact_name(name), type=kind, metadata=dict(metadata))
            used.add_reference(path.resolve().as_uri(), checksum=False)
            self._wandb.use_artifact(used)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of texts, for W&B alone."""
        if self._wandb is None:
            return
        import wandb

        self._wandb.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Final numbers of the stage."""
        if self._wandb is not None:
            self._wandb.summary.update(dict(metrics))

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a metrics file; a last line cut off by a kill is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _start_wandb(
    mode: WandbMode, project: str, name: str, run_folder: Path, run_id: str | None, config: Mapping[str, Any]
) -> wandb.Run:
    # Set before the import, which reads it: wandb reports its own errors to its makers unless told not to.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # else it advertises another package of its makers
    import wandb

    settings = wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        program=Path(sys.argv[0]).name,
    )
    folder = run_folder / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return wandb.init(
            project=project,
            name=name,
            id=run_id,
            resume="allow" if run_id and mode == "online" else None,
            dir=str(run_folder),
            mode=mode if mode == "online" else "offline",
            config=dict(config),
            settings=settings,
        )
    except wandb.Error as error:
        raise DistillError(
            f"Weights & Biases does not start: {error}",
            remedy="set track.wandb to offline or off, or run `wandb login`",
        ) from None


def _artifact_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name)
