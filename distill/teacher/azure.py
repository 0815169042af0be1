"""Azure OpenAI: where a deployment is asked, in either form of its API, and with which key or Entra ID token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import quote

from distill.errors import TeacherError
from distill.recipe.teacher import AzureTeacher
from distill.teacher.credentials import Credential, Key, RenewedToken, Token

ENDPOINT_ENV = "AZURE_OPENAI_ENDPOINT"  # as the official SDK names it
_FORMS = ("/openai/v1", "/openai")  # what a URL copied from the portal may end in


def resource_url(teacher: AzureTeacher, given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """The resource's own URL, without a path of its API. Raises TeacherError where nobody names it."""
    url = (given or teacher.base_url or environment.get(ENDPOINT_ENV, "")).strip().rstrip("/")
    if not url:
        raise TeacherError(
            "nothing says where the Azure resource is",
            remedy=f"set teacher.base_url (https://NAME.openai.azure.com) or {ENDPOINT_ENV}",
        )
    form = next((form for form in _FORMS if url.endswith(form)), "")
    return url.removesuffix(form)


def is_dated(teacher: AzureTeacher) -> bool:
    """Whether the recipe asks for a version by date: those have the deployment in the path."""
    return teacher.api_version is not None and teacher.api_version[:1].isdigit()


def api_url(teacher: AzureTeacher, given: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """What all paths begin with: `.../openai/v1`, or `.../openai` for a dated version."""
    return resource_url(teacher, given, environment) + ("/openai" if is_dated(teacher) else "/openai/v1")


def path_of(teacher: AzureTeacher, path: str) -> str:
    """`/chat/completions` as this deployment has it, with the version as the query."""
    before = f"/deployments/{quote(teacher.model, safe='')}" if is_dated(teacher) else ""
    return f"{before}{path}{version_query(teacher)}"


def version_query(teacher: AzureTeacher) -> str:
    """`?api-version=...`; empty for the undated API, which needs none."""
    return "" if teacher.api_version is None else f"?api-version={teacher.api_version}"


def credential_of(teacher: AzureTeacher, environment: Mapping[str, str] = os.environ) -> Credential:
    """The key, the token of the environment, or tokens of azure-identity. Raises TeacherError where there is none."""
    if teacher.auth == "key":
        key = environment.get(teacher.api_key_env, "").strip()
        if not key:
            raise TeacherError(
                f"the environment has no {teacher.api_key_env}",
                remedy="set it to the resource's key, name another variable in teacher.api_key_env, "
                "or set teacher.auth: entra",
            )
        return Key(key, "api-key")
    token = environment.get(teacher.token_env, "").strip()
    if token:
        return Key(token)
    return RenewedToken(lambda: identity_token(teacher))


def identity_token(teacher: AzureTeacher) -> Token:
    """A token of whoever runs this, as azure-identity finds out: environment, workload, managed identity, az login."""
    try:
        from azure.core.exceptions import AzureError
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise TeacherError(
            "teacher.auth: entra takes its tokens from azure-identity, which is not installed",
            remedy=f"pip install 'distill[azure]', or put a token into {teacher.token_env}",
        ) from None
    try:
        with DefaultAzureCredential() as credential:
            found = credential.get_token(teacher.scope)
    except AzureError as error:
        first = str(error).strip().partition("\n")[0]
        raise TeacherError(
            f"azure-identity has no token for {teacher.scope}: {first[:200]}",
            remedy=f"az login, or set AZURE_CLIENT_ID and its like, or put a token into {teacher.token_env}",
        ) from None
    return Token(found.token, float(found.expires_on))
