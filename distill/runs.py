"""Run folders: `runs/<recipe>/<stage>[-<variant>]/manifest.json`, written last and atomically.

A stage is done iff its manifest is there and names the same inputs; anything else in the folder is unfinished work of
the same inputs (resumable) or is cleared before a start with other inputs.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from distill.errors import DistillError, system_trouble

if TYPE_CHECKING:
    from distill.recipe.schema import Recipe  # benchmarks write their results where pydantic is not installed

MANIFEST = "manifest.json"
_BEGUN = "inputs.json"
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "compressed-tensors")
_HASH_WHOLE_BYTES = 256 << 20


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says of itself. `outputs` maps relative file names to digests."""

    stage: str
    variant: str | None
    inputs: dict[str, str]
    outputs: dict[str, str]
    metrics: dict[str, Any]
    recipe: dict[str, Any]
    versions: dict[str, str]
    seed: int | None
    git_revision: str | None
    started_at: float
    seconds: float
    cost_usd: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Identity of what came out, for the inputs of later stages."""
        return digest_of(self.outputs or self.metrics)


class StageFolder:
    """One stage of a run on disk."""

    def __init__(self, path: Path, stage: str, variant: str | None) -> None:
        self.path = path
        self.stage = stage
        self.variant = variant
        self._started_at = time.time()

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.variant}" if self.variant else self.stage

    def manifest(self) -> Manifest | None:
        """The manifest of a finished stage, or None."""
        try:
            return Manifest(**json.loads((self.path / MANIFEST).read_text()))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, TypeError) as error:
            raise DistillError(
                f"{self.path / MANIFEST} is not a manifest: {error}", remedy=f"remove {self.path} and run again"
            ) from None

    def require(self) -> Manifest:
        """The manifest, or an error that says which verb makes it."""
        manifest = self.manifest()
        if manifest is None:
            raise DistillError(
                f"{self.name} is not finished in {self.path.parent}", remedy=f"run `distill {self.stage}`"
            )
        return manifest

    def is_done(self, inputs: Mapping[str, str]) -> bool:
        """True iff the stage finished with exactly these inputs, and nobody took away what it made."""
        manifest = self.manifest()
        if manifest is None or manifest.inputs != dict(inputs):
            return False
        return all((self.path / name).is_file() for name in manifest.outputs)

    def begin(self, inputs: Mapping[str, str]) -> None:
        """Make the folder ready: keep unfinished work of the same inputs, clear anything else."""
        begun = self.path / _BEGUN
        if self.path.exists():
            same = begun.exists() and begun.read_text() == canonical_json(dict(inputs))
            if not same or (self.path / MANIFEST).exists():
                shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        for left_over in self.path.glob(".*.tmp"):  # of a process that was killed while writing
            left_over.unlink()
        write_atomically(begun, canonical_json(dict(inputs)))
        self._started_at = time.time()

    def finish(
        self,
        recipe: Recipe,
        inputs: Mapping[str, str],
        *,
        metrics: Mapping[str, Any],
        seed: int | None = None,
        cost_usd: float | None = None,
        notes: list[str] | None = None,
        apart: Collection[str] = (),
    ) -> Manifest:
        """Write the manifest; from here on the stage is done. Files and folders named in `apart` are no outputs."""
        apart = {MANIFEST, _BEGUN, *apart}
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and p.name not in apart)
        files = [p for p in files if p.relative_to(self.path).parts[0] not in apart]
        manifest = Manifest(
            stage=self.stage,
            variant=self.variant,
            inputs=dict(inputs),
            outputs={str(p.relative_to(self.path)): file_digest(p) for p in files},
            metrics=dict(metrics),
            recipe=recipe.model_dump(mode="json"),
            versions=versions(),
            seed=seed,
            git_revision=git_revision(),
            started_at=self._started_at,
            seconds=time.time() - self._started_at,
            cost_usd=cost_usd,
            notes=notes or [],
        )
        write_atomically(self.path / MANIFEST, json.dumps(asdict(manifest), indent=1))
        return manifest


class Run:
    """The folder of one recipe's run, or of one shard of it, which has a ledger, a lock and stages of its own."""

    def __init__(self, recipe: Recipe, *, shard: str | None = None) -> None:
        self.recipe = recipe
        self.whole = Path(recipe.output_dir) / recipe.name
        self.path = self.whole if shard is None else self.whole / "shards" / shard

    @property
    def ledger_path(self) -> Path:
        """The ledger outlives every stage: a changed job asks only what was never answered."""
        return self.path / "ledger.sqlite"

    def stage(self, stage: str, variant: str | None = None) -> StageFolder:
        return StageFolder(self.path / (f"{stage}-{variant}" if variant else stage), stage, variant)

    def checkpoint(self, entry: str) -> Path:
        """Model folder of a finished train entry, or of the student before any training for 'student'."""
        if entry == "student":
            return self.stage("train", "student-base").path / "model"
        return self.stage("train", entry).path / "model"

    def variants(self) -> dict[str, Path]:
        """Model folder of every variant of the recipe, in the order of the stages (whether it exists yet or not)."""
        found: dict[str, Path] = {}
        weights = self.recipe.teacher_weights()
        if weights is not None:
            found["teacher"] = Path(weights)
        if self.recipe.train and not self.recipe.from_scratch:
            found["student-base"] = self.checkpoint("student")
        for entry in self.recipe.train:
            found[entry.name] = self.checkpoint(entry.name)
        for quantizer in self.recipe.quantize:
            found[quantizer.name] = self.stage("quantize", quantizer.name).path / "model"
        return found

    def dataset(self, name: str) -> Path:
        """Parquet file of a generate job's name, or the path that `name` is."""
        if any(job.name == name for job in self.recipe.generate):
            return self.stage("generate", name).path / "data.parquet"
        return Path(name)

    @contextmanager
    def lock(self, *, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold the run: a second process on the same folder is refused, after so long, and told who holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience_seconds
        with open(self.path / ".lock", "a+") as handle:
            while not _locked(handle):
                if time.monotonic() >= deadline:
                    handle.seek(0)
                    holder = handle.read().strip() or "another process"
                    raise DistillError(f"{self.path} is in use by {holder}", remedy="wait for it or stop it")
                time.sleep(0.1)
            handle.seek(0)
            handle.truncate()
            handle.write(f"process {os.getpid()}")
            handle.flush()
            try:
                yield
            except DistillError:
                raise
            except Exception as error:
                trouble = system_trouble(error, self.path)
                if trouble is None:
                    raise
                raise trouble from error


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def canonical_json(value: Any) -> str:
    """One text for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file (16 hex digits); files over 256 MiB by size and both ends, for their hashing takes minutes."""
    size = path.stat().st_size
    sha = hashlib.sha256()
    with open(path, "rb") as handle:
        if size <= _HASH_WHOLE_BYTES:
            while chunk := handle.read(1 << 20):
                sha.update(chunk)
        else:
            sha.update(str(size).encode())
            sha.update(handle.read(1 << 20))
            handle.seek(-(1 << 20), os.SEEK_END)
            sha.update(handle.read())
    return sha.hexdigest()[:16]


def path_digest(path: str | Path) -> str:
    """Digest of a file or of a folder's files without its card; of the name where it is no local path (a hub id)."""
    path = Path(path)
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        apart = (MANIFEST, _BEGUN, "README.md")
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in apart)
        return digest_of({str(p.relative_to(path)): file_digest(p) for p in files})
    return digest_of(str(path))


def write_atomically(path: Path, text: str) -> None:
    """Write, fsync and rename, so that a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # write() does not say what it was writing
        raise
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {"python": platform.python_version()}
    for name in ("distill", *_PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Commit of the working folder, with `+` where tracked files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
