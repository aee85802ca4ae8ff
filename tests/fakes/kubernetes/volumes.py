"""Folders on the host that stand for a pod's volumes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import MissingReferenceError, load_data
from .quantities import parse_quantity
from .sandbox import Mount
from .store import Object, Store


@dataclass(frozen=True)
class Volume:
    """A folder, or a tmpfs of `size_bytes` (None: no limit) where there is none."""

    folder: Path | None = None
    size_bytes: int | None = None
    read_only: bool = False


def prepare_volumes(store: Store, pod: Object, folder: Path, claims: Path) -> dict[str, Volume]:
    """Make every volume of the pod; MissingReferenceError tells what it still waits for."""
    return {
        volume["name"]: _prepare(store, pod, volume, folder / volume["name"], claims)
        for volume in pod["spec"].get("volumes") or []
    }


def container_mounts(container: dict[str, Any], volumes: dict[str, Volume]) -> list[Mount]:
    """The mounts of one container, outer ones first."""
    mounts = []
    for mount in sorted(container.get("volumeMounts") or [], key=lambda item: item["mountPath"]):
        target, volume = mount["mountPath"], volumes[mount["name"]]
        if volume.folder is None:
            mounts.append(Mount(target, size_bytes=volume.size_bytes))
            continue
        source = volume.folder / mount.get("subPath", "")
        if not source.exists():
            _open_folder(source)
        read_only = bool(mount.get("readOnly")) or volume.read_only
        mounts.append(Mount(target, source, read_only=read_only))
    return mounts


def _prepare(store: Store, pod: Object, volume: dict[str, Any], folder: Path, claims: Path) -> Volume:
    if "hostPath" in volume:
        return Volume(_host_path(volume))
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]
        folder = _claim_folder(store, pod, claim["claimName"], claims)
        return Volume(folder, read_only=bool(claim.get("readOnly")))
    if "configMap" in volume or "secret" in volume:
        return Volume(_write_files(store, pod, volume, folder), read_only=True)
    if "projected" in volume:
        for source in volume["projected"]["sources"]:
            _write_files(store, pod, {"name": volume["name"], **source}, folder)
        return Volume(folder, read_only=True)
    if "emptyDir" in volume:
        options = volume["emptyDir"] or {}
        if options.get("medium") == "Memory":
            size = options.get("sizeLimit")
            return Volume(size_bytes=int(parse_quantity(size)) if size else None)
        return Volume(_open_folder(folder))
    raise MissingReferenceError(f"the fake has no volume type {sorted(set(volume) - {'name'})}")


def _host_path(volume: dict[str, Any]) -> Path:
    path, kind = Path(volume["hostPath"]["path"]), volume["hostPath"].get("type", "")
    if kind == "DirectoryOrCreate" or not kind:
        path.mkdir(parents=True, exist_ok=True)
    if kind == "Directory" and not path.is_dir():
        problem = f"hostPath type check failed: {path} is not a directory"
        raise MissingReferenceError(_set_up_failed(volume, problem))
    return path


def _claim_folder(store: Store, pod: Object, name: str, claims: Path) -> Path:
    """The hostPath of the volume that the claim names, else a folder of the claim's own."""
    claim = store.get("persistentvolumeclaims", pod["metadata"]["namespace"], name) or {}
    volume = store.get("persistentvolumes", "", claim.get("spec", {}).get("volumeName", "")) or {}
    path = volume.get("spec", {}).get("hostPath", {}).get("path")
    return _open_folder(Path(path) if path else claims / name)


def _open_folder(folder: Path) -> Path:
    """Writable for whichever user the container runs as."""
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    return folder


def _write_files(store: Store, pod: Object, volume: dict[str, Any], folder: Path) -> Path:
    kind = "secret" if "secret" in volume else "configmap"
    source = volume.get("secret") or volume["configMap"]
    name = source.get("secretName") or source.get("name")  # a projected Secret is called `name`
    data = load_data(store, pod["metadata"]["namespace"], kind, name)
    if data is None and not source.get("optional"):
        raise MissingReferenceError(_set_up_failed(volume, f'{kind} "{name}" not found'))
    data = data or {}
    items = source.get("items") or [{"key": key, "path": key} for key in data]
    folder.mkdir(parents=True, exist_ok=True)
    for item in items:
        if item["key"] not in data:
            problem = f"references non-existent {kind} key: {item['key']}"
            raise MissingReferenceError(_set_up_failed(volume, problem))
        mode = item.get("mode") or source.get("defaultMode") or 0o644
        _write_file(pod, folder / item["path"], data[item["key"]], mode)
    return folder


def _write_file(pod: Object, path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    if group is not None and os.geteuid() == 0:
        os.chown(path, 0, group)
        mode |= 0o040
    path.chmod(mode)


def _set_up_failed(volume: dict[str, Any], problem: str) -> str:
    return f'MountVolume.SetUp failed for volume "{volume["name"]}" : {problem}'
