"""The way to a cluster's API server, and what its refusals mean to the user."""

import contextlib
import ipaddress
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.config import incluster_config, kube_config

import steps
from steps.errors import (
    ConfigError,
    CredentialsError,
    ExistsError,
    ForbiddenError,
    NotServedError,
    NotThereError,
    StepError,
    TooLargeError,
    TransientError,
)
from steps.secrets import environment
from steps.train.params import KUBERNETES_CREDENTIALS, TrainParams

TIMEOUT = (10, 60)
"""Seconds to connect, and to wait for an answer: `_request_timeout` of each request."""

_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""What Kubernetes tells a pod of its cluster; the token is not always among it."""
_KUBECONFIG = "~/.kube/config"
# Of the API server's store, which answers 500: asking again changes nothing.
_TOO_LARGE = ("etcdserver: request is too large", "trying to send message larger than max")
_NOT_SERVED = "404 page not found"  # all that it says of a path that it does not know
_LONGEST_TEXT = 500  # a proxy's error page says no more in the rest

# Of the client only some is typed.
_kubeconfig: Any = kube_config
_in_cluster: Any = incluster_config


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster, as one who may or may not do things there."""

    api: client.ApiClient
    namespace: str
    where: str
    """The server, as messages begin."""
    credential: str
    """Who asks, in words: what to renew, or to give a right."""

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Every refusal within as a StepError; `doing` is what was asked: `list TrainingRuntimes`."""
        try:
            yield
        except client.ApiException as error:
            raise self._refused(doing, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise TransientError(
                f"{self.where}: failed to {doing}: no answer: {error}; "
                "check the address and the network"
            ) from error

    def checked(self, doing: str, answer: object) -> dict[str, Any]:
        """The object or list that Kubernetes answered; TransientError where something in between did."""
        if isinstance(answer, dict) and isinstance(answer.get("metadata"), dict):
            return answer
        raise _in_between(f"{self.where}: failed to {doing} for now", str(answer))

    def _refused(self, doing: str, error: client.ApiException) -> StepError:
        status, (words, is_status) = int(error.status or 0), _words(error)
        failed = f"{self.where}: failed to {doing}"
        if not status:  # the client's way to tell a failure of TLS
            if "certificate" in words.lower():
                return ConfigError(
                    f"{failed}: the server's certificate is not trusted: {words}; name a PEM file "
                    "with its CA by SSL_CERT_FILE (sft.yaml: ca_bundle)"
                )
            return TransientError(f"{failed}: the TLS connection broke: {words}")
        if status == 401:
            return CredentialsError(
                f"{failed}: not logged in (401): renew {self.credential}, then run the same command"
            )
        if status == 413 or any(text in words for text in _TOO_LARGE):
            return TooLargeError(f"{failed}: what was sent is too large ({status}): {words}")
        if status in (408, 429) or status >= 500:
            return TransientError(f"{failed} for now ({status}): {words}")
        if status == 404 and words == _NOT_SERVED:
            return NotServedError(
                f"{failed}: the API server does not know the resource: install Kubeflow Trainer 2.1 "
                "or later there, or choose another cluster"
            )
        if not is_status:
            return _in_between(f"{failed} for now ({status})", words)
        if status == 403 and "exceeded quota" in words:
            return TransientError(f"{failed} for now: {words}; free or raise the quota")
        if status == 403 and "denied the request" not in words:  # those are of admission webhooks
            return ForbiddenError(
                f"{failed}: not allowed (403): {self.credential} lacks the right: bind it to a Role "
                f"that has it; the server says: {words}"
            )
        if status == 404:
            return NotThereError(f"{failed}: {words}")
        if status == 409:
            return ExistsError(f"{failed}: {words}")
        return ConfigError(f"{failed} ({status}): {words}")


def connect(params: TrainParams, namespace: str = "") -> Cluster:
    """The cluster that `cluster_auth` leads to.

    `namespace` is that of the run; where the engine does not tell it, the pod's or the kubeconfig's
    own counts. Raises ConfigError where the way or the namespace is missing. Nothing is sent yet.
    """
    ways = {"secret": _by_secret, "service-account": _as_pod, "kubeconfig": _by_kubeconfig}
    return ways[params.cluster_auth](namespace)


def _by_secret(namespace: str) -> Cluster:
    name, (url_key, token_key) = KUBERNETES_CREDENTIALS.name, KUBERNETES_CREDENTIALS.keys
    missing = [key for key in KUBERNETES_CREDENTIALS.keys if not environment(key)]
    if missing:
        raise ConfigError(
            f"secret {name!r}: {' and '.join(missing)} missing or empty: fill both keys, or let the "
            "pod's own service account submit the TrainJob: --cluster-auth service-account; outside of a "
            "pod, --cluster-auth kubeconfig takes yours"
        )
    url, token = environment(url_key).rstrip("/"), environment(token_key)
    _check_address(url, f"secret {name!r}, key {url_key}")
    if not token.isascii() or any(letter.isspace() for letter in token):
        raise ConfigError(f"secret {name!r}, key {token_key}: no token, it has other letters in it")
    settings = client.Configuration(host=url)
    settings.api_key["authorization"] = f"Bearer {token}"
    api = _client(settings)
    if url.startswith("https"):
        # What the process trusts (SSL_CERT_FILE), and in a pod its cluster's own CA.
        trusted = ssl.create_default_context()
        # Clusters' own CAs are often without the key identifier that Python 3.13 insists on.
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if (_POD / "ca.crt").exists():
            trusted.load_verify_locations(_POD / "ca.crt")
        api.rest_client.pool_manager.connection_pool_kw["ssl_context"] = trusted
    return Cluster(
        api,
        namespace or _namespace_of_pod(),
        where=url,
        credential=f"{token_key} of the secret {name!r}",
    )


def _as_pod(namespace: str) -> Cluster:
    settings = client.Configuration()
    try:
        _in_cluster.load_incluster_config(client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise ConfigError(
            f"--cluster-auth service-account: this is no pod with a service account's token: {error}; "
            f"fill the secret {KUBERNETES_CREDENTIALS.name!r} and use --cluster-auth secret, or "
            "outside a pod --cluster-auth kubeconfig"
        ) from error
    settings.proxy = None  # the address is of the pod's own network
    return Cluster(
        _client(settings),
        namespace or _namespace_of_pod(),
        where=settings.host,
        credential="the pod's service account",
    )


def _by_kubeconfig(namespace: str) -> Cluster:
    settings = client.Configuration()
    try:
        files = _kubeconfig.KubeConfigMerger(os.environ.get("KUBECONFIG", _KUBECONFIG))
        if files.config is None:
            raise config.ConfigException("there is none")
        loader = _kubeconfig.KubeConfigLoader(files.config, config_base_path=None)
        loader.load_and_set(settings)
        context = loader.current_context
    except (config.ConfigException, yaml.YAMLError, OSError) as error:
        raise ConfigError(
            f"--cluster-auth kubeconfig: no way to a cluster: {error}: name a kubeconfig by KUBECONFIG"
        ) from error
    where = f"kubeconfig, context {context['name']}"
    if not settings.verify_ssl:
        raise ConfigError(
            f"{where}: insecure-skip-tls-verify would send the credential to anyone: "
            "give certificate-authority instead"
        )
    _check_address(settings.host, where)
    return Cluster(
        _client(settings),
        namespace or context["context"].get("namespace") or "default",
        where=f"{where} ({settings.host})",
        credential=f"the kubeconfig's login ({context['name']})",
    )


def _client(settings: client.Configuration) -> client.ApiClient:
    settings.retries = False  # who asks knows what may be asked twice
    api = client.ApiClient(settings)
    api.user_agent = f"sft-pipeline/{steps.__version__}"
    return api


def _check_address(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"{where}: no address: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query:
        raise ConfigError(f"{where}: write the address as https://host:port")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError(f"{where}: http:// would send the token in the clear: use https://")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _namespace_of_pod() -> str:
    with contextlib.suppress(OSError):
        return (_POD / "namespace").read_text(encoding="utf-8").strip()
    raise ConfigError(
        "--namespace is not given, and this is no pod that has one: say in which namespace of the "
        "cluster the TrainJob shall run"
    )


def _in_between(failed: str, words: str) -> TransientError:
    return TransientError(
        f"{failed}: that was no answer of Kubernetes: {words[:_LONGEST_TEXT]!r}; check the address, and "
        "what stands between"
    )


def _words(error: client.ApiException) -> tuple[str, bool]:
    """What the server says, and whether Kubernetes itself says it, not a proxy or a path unknown."""
    text = error.body or error.reason or ""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    words, is_status = text, False
    with contextlib.suppress(ValueError):
        answer = json.loads(text)
        is_status = isinstance(answer, dict) and answer.get("kind") == "Status"
        words = str(answer.get("message", text)) if is_status else text
    return " ".join(words.split())[:_LONGEST_TEXT], is_status
