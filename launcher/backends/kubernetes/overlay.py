"""The section `pod` of a job or a profile: what is merged into the pods, and into the Job, that launch makes. Pure."""

from collections.abc import Iterator
from typing import Any, cast

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, model_validator
from pydantic_core import InitErrorDetails

from launcher.job.profile import Problem
from launcher.job.types import normal
from trainer.config.job import Section

Object = dict[str, Any]

# What tells the items of a list apart; a list that is not here, nor in the next table, is replaced.
_KEYS = {
    "containers": "name", "initContainers": "name", "imagePullSecrets": "name", "resourceClaims": "name",
    "claims": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "containerPort",
    "hostAliases": "ip", "topologySpreadConstraints": "topologyKey",
}  # fmt: skip
# Half of an old item and half of a new one would be two sources in one.
_WHOLE_ITEMS = {"env", "volumes", "resourceClaims"}
_APPENDED = {"tolerations", "add", "requiredDuringSchedulingIgnoredDuringExecution",
             "preferredDuringSchedulingIgnoredDuringExecution"}


class JobMetadata(Section):
    """Of the Job or JobSet itself."""

    annotations: dict[str, str | None] = Field({}, description="Annotations of the Job or JobSet.")
    labels: dict[str, str | None] = Field({}, description="Labels of the Job or JobSet.")


class PodOverlay(Section, extra="allow"):
    """Merged into the pods on Kubernetes: these fields, and any of a PodSpec by its own name (see clusters.md)."""

    annotations: dict[str, str | None] = Field({}, description="Annotations of the pods.")
    labels: dict[str, str | None] = Field({}, description="Labels of the pods.")
    job: JobMetadata = Field(default_factory=JobMetadata.model_construct, description="Annotations and labels of the "
                             "Job or JobSet.")

    @property
    def spec(self) -> Object:
        """The fields of the PodSpec."""
        return self.model_extra or {}

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, values: Any, handler: ValidatorFunctionWrapHandler) -> "PodOverlay":
        """Every mistake with its place, those of the fields above and those of the PodSpec at once."""
        wrong = []
        overlay = None
        try:
            overlay = cast(PodOverlay, handler(values))
        except ValidationError as error:
            wrong = [InitErrorDetails(type=one["type"], loc=one["loc"], input=one["input"], ctx=one.get("ctx", {}))
                     for one in error.errors()]
        if isinstance(values, dict):
            wrong += [InitErrorDetails(type="value_error", loc=loc, input=None, ctx={"error": ValueError(text)})
                      for loc, text in overlay_problems(values)]
        if wrong or overlay is None:
            raise ValidationError.from_exception_data("pod", wrong)
        return overlay


def overlay_problems(values: Object) -> Iterator[Problem]:
    """What is wrong with an overlay by itself: keys and types, and what launch keeps for itself."""
    from launcher.backends.kubernetes.reserved import reserved_fields  # both load much, and few jobs have an overlay
    from launcher.backends.kubernetes.schema import pod_mistakes

    yield from pod_mistakes(values, also=PodOverlay.model_fields)
    yield from reserved_fields(values)


def merge(old: Object, new: Object) -> Object:
    """`new` over `old`, as kubectl's strategic merge does it: mappings key by key, lists of named items by name, null
    removes. Other lists are replaced, but for those to which an overlay can only add."""
    merged = dict(old)
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = merge(old[key] if isinstance(old.get(key), dict) else {}, value)
        elif isinstance(value, list):
            merged[key] = _merged_lists(key, old.get(key) or [], value)
        else:
            merged[key] = value
    return merged


def _merged_lists(key: str, old: list[Any], new: list[Any]) -> list[Any]:
    new = [merge({}, item) if isinstance(item, dict) and key not in _KEYS else item for item in new]
    if key in _KEYS:
        return _by_key(key, old, new)
    if key == "nodeSelectorTerms" and old:
        return [_both(one, other) for one in old for other in new]
    return [*old, *(item for item in new if item not in old)] if key in _APPENDED else new


def _by_key(key: str, old: list[Object], new: list[Object]) -> list[Object]:
    found = {_name(key, item): item for item in old}
    for item in new:
        name = _name(key, item)
        found[name] = merge({} if key in _WHOLE_ITEMS else found.get(name, {}), item)
    return list(found.values())


def _name(key: str, item: Object) -> Any:
    """What an item is called; a port has a number of its own for each protocol."""
    value = item.get(_KEYS[key])
    if key == "ports":
        return value, item.get("protocol", "TCP")
    return normal(value) if key == "volumeMounts" and isinstance(value, str) else value


def _both(one: Object, other: Object) -> Object:
    """A term that asks for what two terms ask for: of several terms a node need only fit one, so a term more would
    undo what the profile asks for."""
    return {key: [*one.get(key, []), *other.get(key, [])] for key in {**one, **other}}
