"""A finished dataset to the Hugging Face hub, when the recipe asks: data, card, and the teacher's distributions."""

from __future__ import annotations

import json
import os
from pathlib import Path

from distill.errors import DistillError
from distill.recipe.generate import PushToHub
from distill.runs import digest_of, file_digest, write_atomically

PUSHED = "pushed.json"
_FILES = ("README.md", "data.parquet", "logprobs.parquet")


def require_token(section: PushToHub) -> str:
    """The token from the environment; raises where there is none: better before the work than after it."""
    token = os.environ.get(section.token_env, "").strip()
    if not token:
        raise DistillError(
            f"pushing to {section.repo} needs a token, and the environment variable {section.token_env} is not set",
            remedy=f"set {section.token_env} to a token that may write there, or take 'push' out of the job",
        )
    return token


def push(folder: Path, section: PushToHub) -> str | None:
    """Upload what is not there yet as one commit; its URL, or None where exactly this was pushed before.

    The place is HF_ENDPOINT where that is set. Raises DistillError with what to do about it.
    """
    names = [*_FILES, *(["rejected.parquet"] if section.rejected else [])]
    files = [name for name in names if (folder / name).is_file()]
    state = digest_of({"push": section.model_dump(mode="json"), **{n: file_digest(folder / n) for n in files}})
    marker = folder / PUSHED
    if marker.is_file() and json.loads(marker.read_text())["state"] == state:
        return None
    url = _upload(folder, files, section, require_token(section))
    write_atomically(marker, json.dumps({"state": state, "repo": section.repo, "url": url}))
    return url


def _upload(folder: Path, files: list[str], section: PushToHub, token: str) -> str:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="distill")
    try:
        api.create_repo(section.repo, repo_type="dataset", private=section.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=section.repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=files,
            commit_message=f"Dataset of {folder.name}, written by distill",
        )
    except (httpx2.HTTPError, OSError, HFValidationError) as error:  # the hub's own errors are of these kinds
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DistillError(
            f"cannot push {folder.name} to {section.repo}: {line}".replace(token, "***"),
            remedy=f"check the name and that the token in {section.token_env} may write there, then run again: "
            "the dataset is finished and only the push is repeated",
        ) from None
    return str(commit.commit_url)
