"""The official SDK as a transport, without its retries and its parsing into models: proxies, odd URLs."""

from __future__ import annotations

import httpx2
import openai

from distill.teacher.credentials import Credential
from distill.teacher.transport import LOOPBACK, HttpReply, Unreachable

_CONNECTIONS_PER_LANE = 8
_CONNECT_SECONDS = 10.0
_UNUSED = "every request brings its own"  # the SDK insists on a key


class SdkTransport:
    """`openai.AsyncOpenAI` with `max_retries=0`, which follows no redirects: the key goes where the recipe says.

    Its connection pool looks at every connection for every request; several small pools keep that short.
    """

    def __init__(self, base_url: str, credential: Credential, *, num_connections: int) -> None:
        self._credential = credential
        loopback = httpx2.URL(base_url).host in LOOPBACK
        verify = httpx2.create_ssl_context() if base_url.startswith("https") else False
        self._http = [
            openai.DefaultAsyncHttpxClient(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=30.0),
                timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
                trust_env=not loopback,
                verify=verify,
                follow_redirects=False,
            )
            for _ in range(-(-num_connections // _CONNECTIONS_PER_LANE))
        ]
        self._lanes = [
            openai.AsyncOpenAI(base_url=base_url, api_key=_UNUSED, max_retries=0, http_client=client)
            for client in self._http
        ]
        self._next_lane = 0

    async def request(self, method: str, path: str, body: bytes | None, content_type: str) -> HttpReply:
        """One exchange. Raises Unreachable."""
        self._next_lane = (self._next_lane + 1) % len(self._lanes)
        client = self._lanes[self._next_lane]
        try:
            if method == "GET":
                reply = await client.get(path, cast_to=httpx2.Response, options={"headers": self._who()})
            elif content_type.startswith("multipart/"):
                reply = await self._upload(path, body or b"", content_type)
            else:
                headers = {**self._who(), "content-type": content_type}
                reply = await client.post(
                    path, cast_to=httpx2.Response, content=body or b"", options={"headers": headers}
                )
        except openai.APIStatusError as error:
            reply = error.response
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            cause = error.__cause__ or error
            raise Unreachable(str(cause) or type(cause).__name__) from None
        return HttpReply(reply.status_code, dict(reply.headers), reply.content)

    def _who(self) -> dict[str, str | openai.Omit]:
        """The credential's header, and no other of its kind."""
        if self._credential.header == "authorization":
            return {"Authorization": self._credential.value}
        return {"Authorization": openai.Omit(), self._credential.header: self._credential.value}

    async def _upload(self, path: str, body: bytes, content_type: str) -> httpx2.Response:
        """A form as it is: the SDK insists on making its own, so this goes past it, through its connections."""
        client = self._lanes[self._next_lane]
        url = client.base_url.copy_with(path=client.base_url.path.rstrip("/") + path)
        headers = {self._credential.header: self._credential.value, "content-type": content_type}
        return await self._http[self._next_lane].post(str(url), content=body, headers=headers)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._lanes:
            await client.close()
