"""The official Model Registry client, over a connection that verifies, waits, and says what is wrong.

`ModelRegistry`'s own constructor is not called: it sends whatever service account token it finds
in a file, to plain http too; it refuses https without a token, patches asyncio for the whole
process, and knows the v1 routes alone. Everything it offers afterwards is used as it is.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import aiohttp
from model_registry import ModelRegistry
from model_registry.core import ModelRegistryAPIClient
from model_registry.exceptions import StoreError
from model_registry.types import ModelArtifact, ModelVersion
from mr_openapi import ApiClient, Configuration, ModelRegistryServiceApi
from mr_openapi import ModelArtifact as StoredArtifact
from mr_openapi.exceptions import ApiException, NotFoundException
from yarl import URL

from steps.errors import ConfigError, CredentialsError, StepError, TransientError
from steps.register.address import Address
from steps.register.params import REGISTRY_SECRET

log = logging.getLogger(__name__)

T = TypeVar("T")

APIS = ("v1", "v1alpha3")
"""Versions of the registry's API, the one to prefer first. OpenShift AI 3.0 has only the second."""

TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)
"""Seconds for one request; the client's default is five minutes."""

PAUSES = (1.0, 2.0, 4.0)
"""Seconds between attempts."""

CHECK_ADDRESS = (
    "check --address (phase_04_registry_man_address) and --port (phase_04_registry_opt_port)"
)

# Besides all of 5xx: a time-out, a conflict with another client, too many requests.
_PASSING = {408, 409, 425, 429}


def patiently(work: Callable[[], T], pauses: Sequence[float] = PAUSES) -> T:
    """Do `work`, again after each pause as long as it ends in TransientError.

    `work` is begun anew, so it must first look at what an earlier attempt has done.
    """
    for pause in pauses:
        try:
            return work()
        except TransientError as error:
            log.warning("%s; trying again in %g s", error, pause)
            time.sleep(pause)
    return work()


@contextlib.contextmanager
def connect(address: Address, author: str) -> Iterator["Registry"]:
    """The registry at the address, by the first API version that it has, over one connection.

    Raises TransientError where it does not answer for now, CredentialsError where it refuses us,
    and ConfigError where no registry is there or its certificate is not trusted.
    """
    for api in APIS:
        with contextlib.closing(Registry(address, author, api)) as registry:
            if registry.has_routes():
                log.info("the registry at %s speaks %s", address.url, api)
                yield registry
                return
    tried = " and ".join(f"/api/model_registry/{api}/registered_models" for api in APIS)
    raise ConfigError(
        f"{address.url}: no Model Registry there: {tried} answer 404; {CHECK_ADDRESS}"
    )


class Registry(ModelRegistry):  # type: ignore[misc]
    """The client of one registry by one API version; every failure is a StepError."""

    def __init__(self, address: Address, author: str, api: str) -> None:
        self.address = address
        self._author = author
        config = Configuration(
            host=address.url,
            access_token=address.token or None,
            ca_cert_data=address.ca or None,
        )
        self._api = _Connection(config, api)
        self._loop = asyncio.Runner()

    def close(self) -> None:
        """Close the connection, and whatever a stop has left half-way."""
        self._loop.run(self._end())
        self._loop.close()

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._api.routes.close()

    def async_runner(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run a request to its end: the door that all of the client's requests go through."""
        try:
            return self._loop.run(coro)
        except ApiException as error:
            raise self._refused(error) from error
        except aiohttp.ClientSSLError as error:
            raise ConfigError(
                f"{self.address.url}: no trusted TLS connection ({error.strerror or error}); put the "
                f"registry's CA certificate into the secret {REGISTRY_SECRET.name} "
                "(key MODEL_REGISTRY_CA), or check scheme and port of the address"
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransientError(
                f"{self.address.url}: the registry does not answer ({str(error) or 'time-out'})"
            ) from error
        except StoreError as error:
            # Raised here only where another client was faster, between our look and our request.
            raise TransientError(f"{self.address.url}: {error}") from error
        except ValueError as error:
            raise ConfigError(
                f"{self.address.url}: what answers there is no Model Registry; {CHECK_ADDRESS}"
            ) from error

    def has_routes(self) -> bool:
        """Whether the server knows this API version."""

        async def ask() -> bool:
            async with self._api.get_client() as routes:
                try:
                    await routes.get_registered_models(page_size="1")
                except NotFoundException:
                    return False
                return True

        return self.async_runner(ask())

    def version(self, name: str, version: str) -> ModelVersion | None:
        """The version of the registered model; None where either is not there."""
        try:
            return self.get_model_version(name, version)
        except StoreError:  # the client's word for a registered model that is not there
            return None

    def artifact(self, name: str, version_id: str) -> StoredArtifact | None:
        """The version's model artifact as it is stored; the client's own look-up wants a URI in it."""

        async def find() -> StoredArtifact | None:
            async with self._api.get_client() as routes:
                try:
                    return await routes.find_model_artifact(
                        name=name, parent_resource_id=version_id
                    )
                except NotFoundException:
                    return None

        return self.async_runner(find())

    def add_artifact(self, artifact: ModelArtifact, version_id: str) -> None:
        """Give the version an artifact; `register_model` does so only together with the version."""
        self.async_runner(self._api.upsert_model_version_artifact(artifact, version_id))

    def _refused(self, error: ApiException) -> StepError:
        status, url = error.status, self.address.url
        told = f"{status} {_message(error)}".strip()
        if status in (401, 403):
            problem = "refuses the token" if self.address.token else "wants a token and got none"
            return CredentialsError(
                f"{url}: the registry {problem} ({told}); put a valid one into the secret "
                f"{REGISTRY_SECRET.name} (key MODEL_REGISTRY_TOKEN), and begin the address with "
                "https:// (or http:// to send it unencrypted)"
            )
        if status and (status >= 500 or status in _PASSING):
            return TransientError(f"{url}: the registry does not answer as it should ({told})")
        return ConfigError(f"{url}: the registry refuses the request ({told})")


class _Connection(ModelRegistryAPIClient):  # type: ignore[misc]
    """The client's lower half, which would open a connection a request."""

    def __init__(self, config: Configuration, api: str) -> None:
        super().__init__(config)
        self.routes = _Routes(config, api)

    @contextlib.asynccontextmanager
    async def get_client(self) -> AsyncIterator[ModelRegistryServiceApi]:
        yield ModelRegistryServiceApi(self.routes)


class _Routes(ApiClient):  # type: ignore[misc]
    """Requests by one API version.

    The generated client has v1 written into every path. v1alpha3 has the same resources below
    another root, so this is the one place where the two differ.
    """

    def __init__(self, config: Configuration, api: str) -> None:
        super().__init__(config)
        self._version = api

    def param_serialize(self, method: str, resource_path: str, *rest: Any, **named: Any) -> Any:
        path = resource_path.replace("/v1/", f"/{self._version}/", 1)
        return super().param_serialize(method, path, *rest, **named)

    async def call_api(self, *request: Any, **options: Any) -> Any:
        answer = await super().call_api(*request, **options | {"_request_timeout": TIMEOUT})
        if answer.response.history:
            # A redirected POST becomes a GET, and the page behind a redirect is often a login.
            target: URL = answer.response.url
            raise ConfigError(
                f"{self.configuration.host}: redirects to {target.origin()}; if the registry is "
                "there, give that address, and else look at what guards it"
            )
        return answer


def _message(error: ApiException) -> str:
    """What the server said, on one line: the registry's own message, else the page's beginning."""
    try:
        return _line(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return _line(error.body or error.reason or "")


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else f"{words[:200]}..."
