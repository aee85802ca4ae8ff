"""The only place that talks to Kubernetes: plain dicts in and out, and errors of ours.

The official client's DynamicClient, because the typed API rejects or drops what it does not know. Its discovery is
left out: the kinds used here are few and stable, so no answer needs to be cached in a file. Never its Watch, which
hides carriage returns, loses the last line and does not reconnect. The client is imported where it is used: it
costs a third of a second, which a render need not pay.
"""

import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlencode

from launcher.backends.kubernetes.session import Session, account_of, sign_in
from launcher.errors import BackendError

Object = dict[str, Any]

CONNECT_S = 10
ANSWER_S = 60
# A stream that is silent for so long is opened again: a cut connection may never say so.
SILENCE_S = 60
# kind -> API group, version, plural
_KINDS = {
    "Job": ("batch", "v1", "jobs"),
    "JobSet": ("jobset.x-k8s.io", "v1alpha2", "jobsets"),
    "Pod": ("", "v1", "pods"),
    "Service": ("", "v1", "services"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Secret": ("", "v1", "secrets"),
    "Event": ("", "v1", "events"),
}


class ApiError(BackendError):
    """The API server refused (`code` is the HTTP status) or could not be reached (`code` is None). `retry_after_s` is
    how long it wants to be left alone."""

    retry_after_s = 0.0

    def __init__(self, message: str, hint: str | None = None, *, code: int | None = None) -> None:
        super().__init__(message, hint)
        self.code = code

    @property
    def passing(self) -> bool:
        """Whether asking again may help: no connection, too many requests, a list that went out of date, or trouble
        inside the server."""
        return self.code is None or self.code in (410, 429) or self.code >= 500


class Kube:
    """One cluster, as a context of the user's kubeconfig names it. All threads share it.

    Credentials are read again when the API refuses them (401: a token or a client certificate has expired) and when one
    of their files changes: by one thread, whose session the others take over. So one exec plug-in runs at a time.
    """

    def __init__(self, environ: Mapping[str, str], context: str | None) -> None:
        self._account = account_of(environ, context)
        self.context, self.kubectl = self._account.context, self._account.kubectl
        # the API notes it in what this client makes, which so can be told from everybody else's
        self._manager = f"launch-{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._session = sign_in(self._account)

    def _signed_in(self, refused: Session | None = None) -> Session:
        """The session, and a new one in place of `refused` or of one that is outdated."""
        with self._lock:
            if self._session is refused:
                self._session = sign_in(self._account)
            elif self._session.is_outdated:
                with suppress(BackendError):  # a file that is just being written; the old ones may still do
                    self._session = sign_in(self._account)
            return self._session

    def create(self, body: Object, *, dry_run: bool = False) -> Object:
        """Create an object; fields that the API does not know are an error."""
        query = [("fieldValidation", "Strict"), ("fieldManager", self._manager)]
        query += [("dryRun", "All")] if dry_run else []
        namespace = body["metadata"]["namespace"]
        return self._call("create", body["kind"], namespace=namespace, body=body, query_params=query)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object, or None when there is none of that name."""
        try:
            return self._call("get", kind, namespace=namespace, name=name)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def uid_of_own(self, kind: str, namespace: str, name: str) -> str | None:
        """The uid of an object that this client made; None when there is none, or somebody else made it."""
        meta = (self.get(kind, namespace, name) or {"metadata": {}})["metadata"]
        is_own = any(entry.get("manager") == self._manager for entry in meta.get("managedFields") or [])
        return meta["uid"] if is_own else None

    def list(self, kind: str, namespace: str, *, labels: str | None = None, fields: str | None = None) -> list[Object]:
        """All objects of a kind that match the selectors."""
        found = self._call("get", kind, namespace=namespace, label_selector=labels, field_selector=fields)
        return cast("list[Object]", found["items"])

    def delete(self, kind: str, namespace: str, name: str, *, propagation: str, at_once: bool = False,
               uid: str | None = None) -> bool:
        """Delete an object and what it owns; False when it was gone. The API's own default would leave the pods.

        `at_once` gives a pod no time to stop, and waits for no word of its node. With `uid` another object of the
        same name stays.
        """
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        if at_once:
            options["gracePeriodSeconds"] = 0
        try:
            self._call("delete", kind, namespace=namespace, name=name, body=options)
        except ApiError as error:
            if error.code == 404 or (uid and error.code == 409):
                return False
            raise
        return True

    def evict(self, namespace: str, pod: str) -> None:
        """Ask for a pod's eviction, as a drain does: it gets its grace period, and counts as disrupted."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
        self._call("create", "Pod", part=f"/{pod}/eviction", namespace=namespace, body=body)

    def set_phase(self, namespace: str, pod: str, phase: str) -> None:
        """Write a pod's phase for a node that cannot any more."""
        self._call("patch", "Pod", name=f"{pod}/status", namespace=namespace, body={"status": {"phase": phase}},
                   content_type="application/merge-patch+json")

    def stream_log(self, namespace: str, pod: str, container: str, *, since: str | None,
                   follow: bool) -> Iterator[bytes]:
        """The pieces of a container's log as they come, with stamps. `since` counts in whole seconds.

        It also ends after SILENCE_S without a line. The client's own call has no sinceTime, so this is the bare
        request.
        """
        query = {"container": container, "timestamps": "true", "follow": str(follow).lower()}
        query |= {"sinceTime": since} if since else {}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log?{urlencode(query)}"
        session = self._signed_in()
        try:
            yield from self._stream(session, path)
        except ApiError as error:
            if error.code != 401:  # which is answered before the first piece
                raise
            yield from self._stream(self._signed_in(refused=session), path)

    def _stream(self, session: Session, path: str) -> Iterator[bytes]:
        import urllib3

        response = None
        try:
            response = session.api.rest_client.pool_manager.request(
                "GET", session.api.configuration.host + path, headers=_auth_headers(session), preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=SILENCE_S))
            if response.status != 200:
                raise _after(response.headers, self._refused(response.status, response.read()))
            yield from response.stream(2**16, decode_content=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            if response is None:
                raise self._unreachable(error) from error
        except urllib3.exceptions.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            if response is not None:
                response.close()

    def _call(self, verb: str, kind: str, *, part: str = "", **arguments: Any) -> Object:
        session = self._signed_in()
        try:
            return self._answer(session, verb, kind, part, arguments)
        except ApiError as error:
            if error.code != 401:
                raise
            return self._answer(self._signed_in(refused=session), verb, kind, part, arguments)

    def _answer(self, session: Session, verb: str, kind: str, part: str, arguments: dict[str, Any]) -> Object:
        import kubernetes.dynamic.exceptions
        import urllib3

        try:
            return cast(Object, getattr(session.client, verb)(
                _resource(session.client, kind, part), serializer=lambda client, data: data,
                _request_timeout=(CONNECT_S, ANSWER_S), **arguments))
        except kubernetes.dynamic.exceptions.DynamicApiError as error:
            refusal = self._refused(error.status, error.body, arguments.get("namespace"))
            raise _after(error.headers, refusal) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ApiError:
        text = re.sub(r"^.*Connection\(.*\): |^<.*>: ", "", str(error))
        return ApiError(f"cluster {self.context!r} at {self._session.api.configuration.host} cannot be reached: {text}",
                        f"see whether it answers: {self.kubectl} cluster-info")

    def _refused(self, code: int, body: Any, namespace: str | None = None) -> ApiError:
        text = _message(body)
        if code == 401:
            return ApiError(f"cluster {self.context!r} rejected your credentials: {text}",
                            f"log in again; see who you are: {self.kubectl} auth whoami", code=code)
        if code == 404 and text.startswith("namespaces "):
            return ApiError(f"namespace {namespace!r} does not exist in cluster {self.context!r}",
                            f"make it: {self.kubectl} create namespace {namespace}", code=code)
        if code == 404 and "could not find the requested resource" in text:
            return ApiError(f"cluster {self.context!r} does not have this kind of object: {text}", code=code)
        if code == 403 and " cannot " in text:
            return ApiError(f"cluster {self.context!r} does not allow it: {text}",
                            "the administrator's part is in k8s/README.md: a Role with what launch needs", code=code)
        return ApiError(f"cluster {self.context!r} refused ({code}): {text}", code=code)


def _auth_headers(session: Session) -> dict[str, str]:
    headers: dict[str, str] = {}
    session.api.update_params_for_auth(headers, [], ["BearerToken"], None, None, None)
    return headers


def _resource(client: Any, kind: str, part: str) -> Any:
    import kubernetes.dynamic.resource

    group, version, plural = _KINDS[kind]
    return kubernetes.dynamic.resource.Resource(prefix="apis" if group else "api", group=group, api_version=version,
                                                kind=kind, namespaced=True, name=plural + part, client=client)


def _after(headers: Any, refusal: ApiError) -> ApiError:
    """The refusal with its Retry-After in seconds; a date there, which the API never sends, counts as none."""
    wanted = str((headers or {}).get("Retry-After", ""))
    refusal.retry_after_s = float(wanted) if wanted.isdigit() else 0.0
    return refusal


def _message(body: Any) -> str:
    """The `message` of a Status object, or the text itself."""
    text = body.decode("utf-8", errors="replace") if isinstance(body, bytes) else str(body or "no reason given")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()
