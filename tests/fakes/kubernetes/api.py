"""The verbs of the API on the store, without HTTP."""

from __future__ import annotations

import copy
import random
import uuid
from collections.abc import Callable
from typing import Any

from . import admission, gc, patching, schema
from .defaults import apply_defaults
from .errors import ApiError, already_exists, invalid, not_found
from .resources import Resource
from .selectors import matches_fields, matches_labels
from .store import Object, Store, set_condition
from .validation import check_always, check_new, check_update

Query = dict[str, str]
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_JOB_DEFAULT_POLICY = "Orphan"


def random_suffix() -> str:
    return "".join(random.choices(_SUFFIX, k=5))


class Api:
    """Create, read, change and delete objects as the API server does.

    Methods return copies. `warnings` receives what a real server would put in
    Warning headers.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.denied: set[tuple[str, str]] = set()
        self._applied: dict[str, dict[str, dict[str, Any]]] = {}

    def create(
        self,
        resource: Resource,
        namespace: str,
        body: Object,
        query: Query,
        warn: Callable[[str], None] = lambda _: None,
    ) -> Object:
        if resource.plural == "selfsubjectaccessreviews":
            return self._review_access(body)
        obj = self._incoming(resource, namespace, body)
        self._check_schema(resource, obj, query)
        with self.store.lock:
            return self._create(resource, namespace, obj, query, warn)

    def _create(
        self,
        resource: Resource,
        namespace: str,
        obj: Object,
        query: Query,
        warn: Callable[[str], None],
    ) -> Object:
        self._require_namespace(resource, namespace)
        meta = obj["metadata"]
        _complete_name(resource, meta)
        apply_defaults(resource.plural, obj)
        self._refuse_invalid(resource, obj, check_new(resource.plural, obj))
        if resource.plural == "pods":
            admission.admit_pod(self.store, obj)
        elif resource.plural == "jobs":
            template = obj["spec"]["template"]["spec"]
            if warning := admission.security_warning(self.store, namespace, template):
                warn(warning)
        existing = self.store.get(resource.plural, namespace, meta["name"])
        if existing:
            deleting = "deletionTimestamp" in existing["metadata"]
            raise already_exists(resource.qualified, meta["name"], being_deleted=deleting)
        if _is_dry_run(query):
            meta["uid"] = str(uuid.uuid4())
            apply_defaults(resource.plural, obj)
            return obj
        meta["managedFields"] = [{"manager": query.get("fieldManager") or "unknown", "operation": "Update"}]
        self.store.add(resource.plural, obj)
        apply_defaults(resource.plural, obj)
        if resource.plural == "namespaces":
            account = {"name": "default", "namespace": meta["name"]}
            self.store.add("serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        return copy.deepcopy(obj)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        with self.store.lock:
            return copy.deepcopy(self._live(resource, namespace, name))

    def list_objects(self, resource: Resource, namespace: str | None, query: Query) -> Object:
        with self.store.lock:
            items = [copy.deepcopy(obj) for obj in self.store.select(resource.plural, namespace) if matches(obj, query)]
            version = str(self.store.version)
        for item in items:
            item.pop("kind", None)
            item.pop("apiVersion", None)
        return {
            "kind": f"{resource.kind}List",
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": version},
            "items": items,
        }

    def replace(self, resource: Resource, namespace: str, name: str, body: Object, query: Query) -> Object:
        new = self._incoming(resource, namespace, body)
        self._check_schema(resource, new, query)
        with self.store.lock:
            return self._update(resource, self._live(resource, namespace, name), new, query)

    def patch(self, resource: Resource, namespace: str, name: str, body: Object, query: Query) -> Object:
        with self.store.lock:
            old = self._live(resource, namespace, name)
            new = patching.merge(copy.deepcopy(old), body)
            self._check_schema(resource, new, query)
            return self._update(resource, old, new, query)

    def apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Object,
        query: Query,
        warn: Callable[[str], None] = lambda _: None,
    ) -> tuple[Object, bool]:
        """Server-side apply; the flag tells whether the object is new."""
        body = self._incoming(resource, namespace, body)
        body["metadata"].setdefault("name", name)
        self._check_typed_patch(resource, namespace, name, body)
        manager = query.get("fieldManager")
        if not manager:
            raise ApiError(400, "fieldManager is required for apply patch")
        with self.store.lock:
            old = self.store.get(resource.plural, namespace, name)
            is_new = old is None
            if old is None:
                result = self._create(resource, namespace, copy.deepcopy(body), query, warn)
            else:
                result = self._apply_to(resource, old, body, manager, query)
            if not _is_dry_run(query):
                self._applied.setdefault(result["metadata"]["uid"], {})[manager] = body
            return result, is_new

    def _apply_to(self, resource: Resource, old: Object, body: Object, manager: str, query: Query) -> Object:
        new = patching.apply(
            copy.deepcopy(old),
            copy.deepcopy(body),
            manager=manager,
            applied=self._applied.get(old["metadata"]["uid"], {}),
            force=query.get("force", "").lower() == "true",
        )
        return self._update(resource, old, new, query)

    def set_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        with self.store.lock:
            obj = self._live(resource, namespace, name)
            obj["status"] = patching.merge(obj.get("status", {}), body.get("status", {}))
            self.store.touch(resource.plural, obj)
            return copy.deepcopy(obj)

    def delete(self, resource: Resource, namespace: str, name: str, options: dict[str, Any]) -> Object:
        """Start the deletion and answer the object as it is then."""
        with self.store.lock:
            obj = self._live(resource, namespace, name)
            wanted_uid = (options.get("preconditions") or {}).get("uid")
            if wanted_uid and wanted_uid != obj["metadata"]["uid"]:
                message = f"Precondition failed: UID in precondition: {wanted_uid}"
                raise ApiError(409, message)
            if not _is_dry_run(options):
                gc.delete(self.store, resource.plural, obj, *_deletion(resource, options))
            return copy.deepcopy(obj)

    def delete_collection(self, resource: Resource, namespace: str, options: dict[str, Any]) -> int:
        with self.store.lock:
            chosen = [o for o in self.store.select(resource.plural, namespace) if matches(o, options)]
            for obj in chosen:
                gc.delete(self.store, resource.plural, obj, *_deletion(resource, options))
            return len(chosen)

    def evict(self, resource: Resource, namespace: str, name: str) -> None:
        with self.store.lock:
            pod = self._live(resource, namespace, name)
            message = "Eviction API: evicting"
            set_condition(pod, "DisruptionTarget", "True", "EvictionByEvictionAPI", message)
            gc.delete(self.store, "pods", pod, "Background")

    def _review_access(self, body: Object) -> Object:
        asked = body.get("spec", {}).get("resourceAttributes") or {}
        denied = (asked.get("verb"), asked.get("resource")) in self.denied
        return {**body, "status": {"allowed": not denied}}

    def _incoming(self, resource: Resource, namespace: str, body: Object) -> Object:
        obj = copy.deepcopy(body)
        obj.setdefault("kind", resource.kind)
        obj.setdefault("apiVersion", resource.api_version)
        if (obj["kind"], obj["apiVersion"]) != (resource.kind, resource.api_version):
            raise ApiError(400, f"the object is a {obj['kind']}, not a {resource.kind}")
        meta = obj.setdefault("metadata", {})
        if resource.namespaced and meta.setdefault("namespace", namespace) != namespace:
            raise ApiError(400, "the namespace of the provided object does not match the request")
        return obj

    def _check_schema(self, resource: Resource, obj: Object, query: Query) -> None:
        """Drop unknown fields, or list them all when asked to be strict."""
        strict = query.get("fieldValidation") == "Strict"
        unknown, mistyped = schema.problems(obj, prune=not strict)
        handled = f'{resource.kind} in version "v1" cannot be handled as a {resource.kind}: '
        if mistyped:
            where, wanted, got = mistyped[0]
            text = f"json: cannot unmarshal {got} into Go struct field {where} of type {wanted}"
            raise ApiError(400, handled + text)
        if strict and unknown:
            text = ", ".join(f'unknown field "{where}"' for where in unknown)
            raise ApiError(400, f"{handled}strict decoding error: {text}")

    def _check_typed_patch(self, resource: Resource, namespace: str, name: str, body: Object) -> None:
        """Server-side apply answers 500 for what create calls a bad request."""
        unknown, mistyped = schema.problems(body)
        texts = [f".{where}: field not declared in schema" for where in unknown]
        texts += [f".{where}: expected {wanted}, got {got}" for where, wanted, got in mistyped]
        if texts:
            target = f"{namespace}/{name}; {resource.api_version}, Kind={resource.kind}"
            message = f"failed to create typed patch object ({target}): {', '.join(texts)}"
            raise ApiError(500, message, reason="InternalError")

    def _require_namespace(self, resource: Resource, namespace: str) -> None:
        if not resource.namespaced:
            return
        found = self.store.get("namespaces", "", namespace)
        if not found:
            raise not_found("namespaces", namespace)
        if "deletionTimestamp" in found["metadata"]:
            reason = f"because it is being terminated: namespace {namespace}"
            raise ApiError(403, f"unable to create new content in namespace {namespace} {reason}")

    def _live(self, resource: Resource, namespace: str, name: str) -> Object:
        obj = self.store.get(resource.plural, namespace, name)
        if obj is None:
            raise not_found(resource.qualified, name)
        return obj

    def _refuse_invalid(self, resource: Resource, obj: Object, problems: list[str]) -> None:
        if problems:
            raise invalid(resource.qualified_kind, obj["metadata"]["name"], problems)

    def _update(self, resource: Resource, old: Object, new: Object, query: Query) -> Object:
        _keep_server_fields(resource, old, new)
        apply_defaults(resource.plural, new)
        plural = resource.plural
        problems = [*check_always(plural, new), *check_update(plural, old, new)]
        self._refuse_invalid(resource, new, problems)
        if new == old or _is_dry_run(query):
            return copy.deepcopy(new)
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        old.clear()
        old.update(copy.deepcopy(new))
        self.store.touch(plural, old)
        return copy.deepcopy(old)


def _complete_name(resource: Resource, meta: dict[str, Any]) -> None:
    if meta.get("name"):
        return
    if not meta.get("generateName"):
        problem = "metadata.name: Required value: name or generateName is required"
        raise invalid(resource.qualified_kind, "", [problem])
    meta["name"] = meta["generateName"] + random_suffix()


def matches(obj: Object, query: dict[str, Any]) -> bool:
    labels, fields = query.get("labelSelector"), query.get("fieldSelector")
    return matches_labels(obj, labels or "") and matches_fields(obj, fields or "")


def _default_account(namespace: str) -> Object:
    """What a controller makes in every namespace."""
    metadata = {"name": "default", "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def _keep_server_fields(resource: Resource, old: Object, new: Object) -> None:
    """What a client cannot change, and the resourceVersion it may insist on."""
    meta, current = new["metadata"], old["metadata"]
    wanted = meta.get("resourceVersion")
    if wanted and wanted != current["resourceVersion"]:
        message = (
            f'Operation cannot be fulfilled on {resource.qualified} "{current["name"]}": the '
            "object has been modified; please apply your changes to the latest version and try again"
        )
        raise ApiError(409, message)
    for key in ("uid", "creationTimestamp", "resourceVersion", "generation", "deletionTimestamp"):
        meta.pop(key, None)
        if key in current:
            meta[key] = current[key]
    if resource.plural in ("pods", "jobs") and "status" in old:
        new["status"] = copy.deepcopy(old["status"])


def _is_dry_run(query: dict[str, Any]) -> bool:
    return "All" in (query.get("dryRun") or "")


def _deletion(resource: Resource, options: dict[str, Any]) -> tuple[str, int | None]:
    default = _JOB_DEFAULT_POLICY if resource.plural == "jobs" else "Background"
    policy = options.get("propagationPolicy") or default
    grace = options.get("gracePeriodSeconds")
    return policy, None if grace is None else int(grace)
