"""Is the teacher there: one cheap GET of `/models`, which no provider bills."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from distill.errors import TeacherError
from distill.plan.finding import Finding, failed, fine, warned
from distill.recipe.teacher import AzureTeacher, EmbeddedTeacher, OpenAITeacher, Teacher
from distill.teacher import azure
from distill.teacher.credentials import Key

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
    if isinstance(teacher, AzureTeacher):
        return _ask_azure(teacher, environment)
    base = (teacher.base_url or environment.get("OPENAI_BASE_URL") or _PUBLIC_API).rstrip("/")
    key = environment.get(teacher.api_key_env)
    return _ask(teacher, base, "/models", {"Authorization": f"Bearer {key}"} if key else {}, teacher.api_key_env)


def _ask_azure(teacher: AzureTeacher, environment: Mapping[str, str]) -> Finding:
    try:
        base, credential = azure.api_url(teacher, None, environment), azure.credential_of(teacher, environment)
    except TeacherError as error:
        return failed("teacher", error.message, error.remedy or "")
    if not isinstance(credential, Key):  # asking for a token may wait for networks that are not there
        return warned(
            "teacher", f"{teacher.model} at {base}, not asked", "tokens come from azure-identity at first use"
        )
    variable = teacher.api_key_env if teacher.auth == "key" else teacher.token_env
    headers = {credential.header: credential.value}
    return _ask(teacher, base, f"/models{azure.version_query(teacher)}", headers, variable)


def _ask(
    teacher: OpenAITeacher | AzureTeacher, base: str, path: str, headers: dict[str, str], variable: str
) -> Finding:
    if not base.startswith(("http://", "https://")):
        return failed("teacher", f"{base} is not a URL", "set teacher.base_url to http(s)://host[:port]/v1")
    request = urllib.request.Request(f"{base}{path}", headers=headers)
    key_there = f"{variable} is {'set' if headers else 'not set'}"
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_SECONDS) as answer:
            body = answer.read()
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = f"set {variable} to a key that {base} accepts"
            return failed("teacher", f"{base} refuses the key (HTTP {error.code}; {key_there})", remedy)
        if error.code == 404:  # answers, but does not list models: some gateways do not
            return warned("teacher", f"{base} answers but has no /models", "check the path in teacher.base_url")
        return failed("teacher", f"{base} answers HTTP {error.code}", "try again later, or look at the server's log")
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return failed("teacher", f"{base} cannot be reached: {reason}", "start the server, or mend teacher.base_url")
    listed = _listed(body)
    if listed is not None and isinstance(teacher, OpenAITeacher) and teacher.model not in listed:
        some = ", ".join(sorted(listed)[:5]) or "no model"
        return warned("teacher", f"{base} does not list {teacher.model}", f"set teacher.model; it lists {some}")
    return fine("teacher", f"{teacher.model} at {base}; {key_there}")


def _listed(body: bytes) -> set[str] | None:
    """Model ids of an answer, None where it is not the usual shape."""
    try:
        return {str(model["id"]) for model in json.loads(body)["data"]}
    except (ValueError, KeyError, TypeError):
        return None
