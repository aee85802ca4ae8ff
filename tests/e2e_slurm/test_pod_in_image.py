"""The pod that is rendered for Kubernetes, its very containers run by podman in the trainer's image: Debian's Python,
not root, a read-only root file system, volumes as rendered."""

import base64
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"
PATIENCE_S = 300
USER = 1000


@pytest.fixture
def rendered(launch) -> dict[str, dict]:
    """The objects of a training of two steps, by kind and name; its code folder holds its rows."""
    shutil.copytree(QUICKSTART, launch.cwd, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fields = {"env.MASTER_PORT": port, "env.OMP_NUM_THREADS": 1, "train.optimizer.max_steps": 2,
              "train.optimizer.batch_size": 2, "train.runtime.log_every": 1, "train.runtime.sample_prompts": "[]"}
    options = [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]
    bodies = yaml.safe_load_all(launch.ok("render", "base.yaml", "--backend", "kubernetes", *options))
    return {f"{body['kind']}/{body['metadata']['name']}": body for body in bodies}


def lay_out(volumes: list[dict], objects: dict[str, dict], folder: Path) -> dict[str, Path]:
    """The volumes as folders, as a kubelet makes them: what is empty belongs to the pod's group (fsGroup)."""
    found = {}
    for volume in volumes:
        path = found[volume["name"]] = folder / volume["name"]
        path.mkdir()
        if "emptyDir" in volume:
            os.chown(path, 0, USER)
            path.chmod(0o2777)
        for source in volume.get("projected", {}).get("sources", []):
            body = objects[f"ConfigMap/{source['configMap']['name']}"]
            files = {name: text.encode() for name, text in body.get("data", {}).items()}
            files |= {name: base64.b64decode(text) for name, text in body.get("binaryData", {}).items()}
            for name, content in files.items():
                (path / name).write_bytes(content)
    return found


def words_of(container: dict, pod: dict, volumes: dict[str, Path], image: str) -> Iterator[str]:
    """What podman is asked for, so that the container is as Kubernetes would start it."""
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    security = pod["securityContext"]
    yield from ("podman", "run", "--rm", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--network=host",
                "--security-opt=no-new-privileges", f"--user={security['runAsUser']}:{security['runAsGroup']}")
    for item in container.get("env", []):
        yield f"--env={item['name']}={item.get('value', '0')}"  # 0: the index, which a field of the pod gives
        if item["name"] == "MASTER_ADDR":  # the headless Service's work
            yield f"--add-host={item['value']}:127.0.0.1"
    for mount in container["volumeMounts"]:
        mode = ":ro" if mount.get("readOnly") else ""
        yield f"--volume={volumes[mount['name']]}:{mount['mountPath']}{mode}"
    yield from (f"--workdir={container['workingDir']}", f"--entrypoint={json.dumps(container['command'])}", image)
    yield from container.get("args", [])


@pytest.mark.needs("podman")
def test_a_training_with_code_runs_as_kubernetes_would_run_it(rendered, podman, image, tmp_path):
    job = next(body for body in rendered.values() if body["kind"] == "Job")
    pod = job["spec"]["template"]["spec"]
    (tmp_path / "volumes").mkdir()
    volumes = lay_out(pod["volumes"], rendered, tmp_path / "volumes")
    printed = ""
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        done = subprocess.run([*words_of(container, pod, volumes, image)], env={**os.environ, **podman}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
        printed += done.stdout
        assert done.returncode == 0, printed
    assert "step 2/2" in printed
    assert (volumes["workspace"] / "outputs/base/model/config.json").stat().st_uid == USER
    code = sorted(path.name for path in volumes["code"].iterdir())
    assert code == sorted(path.name for path in QUICKSTART.iterdir() if path.is_file())
