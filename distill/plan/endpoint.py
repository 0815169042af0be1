"""Is the teacher there: one cheap GET of `/models`, which no provider bills."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from distill.plan.finding import Finding, failed, fine, warned
from distill.recipe.teacher import EmbeddedTeacher, OpenAITeacher, Teacher

_PUBLIC_API = "https://api.openai.com/v1"
_TIMEOUT_SECONDS = 10.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for the host that the recipe names: a redirect is reported, not followed."""

    def redirect_request(self, *_arguments: object) -> None:
        return None


def check_teacher(teacher: Teacher, environment: Mapping[str, str]) -> Finding:
    """An embedded teacher needs its folder; a served one must answer and take the key. The key is never shown."""
    if isinstance(teacher, EmbeddedTeacher):
        if (Path(teacher.model) / "config.json").is_file():
            return fine("teacher", f"embedded, {teacher.model}")
        return failed("teacher", f"no model in {teacher.model}", "set teacher.model to a folder with a model")
    return _ask(teacher, environment)


def _ask(teacher: OpenAITeacher, environment: Mapping[str, str]) -> Finding:
    base = (teacher.base_url or environment.get("OPENAI_BASE_URL") or _PUBLIC_API).rstrip("/")
    key = environment.get(teacher.api_key_env)
    if not base.startswith(("http://", "https://")):
        return failed("teacher", f"{base} is not a URL", "set teacher.base_url to http(s)://host[:port]/v1")
    request = urllib.request.Request(f"{base}/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    key_there = f"{teacher.api_key_env} is {'set' if key else 'not set'}"
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_SECONDS) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = f"set {teacher.api_key_env} to a key that {base} accepts"
            return failed("teacher", f"{base} refuses the key (HTTP {error.code}; {key_there})", remedy)
        if error.code == 404:  # answers, but does not list models: some gateways do not
            return warned("teacher", f"{base} answers but has no /models", "check the path in teacher.base_url")
        return failed("teacher", f"{base} answers HTTP {error.code}", "try again later, or look at the server's log")
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return failed("teacher", f"{base} cannot be reached: {reason}", "start the server, or mend teacher.base_url")
    listed = _listed(body)
    if listed is not None and teacher.model not in listed:
        some = ", ".join(sorted(listed)[:5]) or "no model"
        return warned("teacher", f"{base} does not list {teacher.model}", f"set teacher.model; it lists {some}")
    return fine("teacher", f"{teacher.model} at {base}; {key_there}")


def _listed(body: bytes) -> set[str] | None:
    """Model ids of an answer, None where it is not the usual shape."""
    try:
        return {str(model["id"]) for model in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return None
