"""The section `pod`: merged into what launch makes, shown by a render, refused with a reason where it cannot be."""

import os
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from launcher.backends.kubernetes.objects import pod_template, run_objects
from launcher.backends.kubernetes.overlay import merge
from launcher.backends.kubernetes.schema import _mistakes
from launcher.errors import SpecError
from launcher.services.prepare import Request, prepare
from launcher.services.rendering import rendered
from tests import crds, jobs

API_VERSION = kubernetes_validate.latest_version()
GOLDEN = Path(__file__).parent.parent / "golden"
K8S = {"backend": "kubernetes"}
JOB = {"name": "a", "image": "registry.example.com/x:1", "run": ["true"],
       "resources": {"nodes": 2, "gpus_per_node": 1, "memory_per_node": "64Gi"}}


@pytest.mark.parametrize("name", ["multus", "openshift"])
def test_a_cluster_that_needs_more_is_the_golden_file_and_strictly_valid(name):
    request = Request(GOLDEN / f"k8s-{name}.job.yaml", clusters=GOLDEN / f"k8s-{name}.profile.yaml")
    text, golden = rendered(prepare(request, {}), "guanaco-0123abcd").text, GOLDEN / f"k8s-{name}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
    for body in yaml.safe_load_all(text):
        kubernetes_validate.validate(body, API_VERSION, strict=True)


def plan_of(pod, *, profile=None, code=None, **job):
    """The plan of a job with this overlay."""
    return jobs.plan_of({**JOB, **job, **({"pod": pod} if pod else {})}, {**K8S, **(profile or {})}, code_archive=code)


def template_of(pod=None, **more):
    """The pods that a job with this overlay gets; what is sent is strictly valid."""
    owner = run_objects(plan_of(pod, **more))[0]
    kubernetes_validate.validate(owner, API_VERSION, strict=True)
    return pod_template(owner)


def spec_of(pod=None, **more):
    return template_of(pod, **more)["spec"]


def trainer_of(*args, **more):
    return spec_of(*args, **more)["containers"][0]


TERM = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
GPU = {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}


def node_affinity(term):
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


PLAIN = {
    "runtimeClassName": "nvidia", "schedulerName": "kai", "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["store"]}],
    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "four-gpus"}], "priorityClassName": "high",
    "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]},
}  # fmt: skip


@pytest.mark.parametrize("key", PLAIN)
def test_a_field_of_the_pod_is_taken_as_it_is(key):
    assert spec_of({key: PLAIN[key]})[key] == PLAIN[key]
    assert spec_of(profile={"pod": {key: PLAIN[key]}})[key] == PLAIN[key]


def test_the_jobs_overlay_comes_after_the_profiles():
    profile = {"pod": {"annotations": {"a": "1", "b": "1"}, "schedulerName": "one", "runtimeClassName": "nvidia",
                       "labels": {"team": "x"}, "job": {"labels": {"cost": "1"}}}}
    plan = plan_of({"annotations": {"b": "2", "a": None}, "schedulerName": "two", "runtimeClassName": None,
                    "job": {"annotations": {"c": "3"}, "labels": {"cost": "2"}}}, profile=profile)
    owner = run_objects(plan)[0]
    template = pod_template(owner)
    assert template["metadata"]["annotations"] == {"b": "2"}
    assert template["metadata"]["labels"]["team"] == "x"
    assert template["spec"]["schedulerName"] == "two" and "runtimeClassName" not in template["spec"]
    assert owner["metadata"]["annotations"]["c"] == "3" and owner["metadata"]["annotations"]["launch/name"] == "a"
    assert owner["metadata"]["labels"]["cost"] == "2"


def test_a_job_set_takes_the_same():
    pod = {"annotations": {"x": "y"}, "hostNetwork": True,
           "job": {"annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "rack"}}}
    owner = run_objects(plan_of(pod, profile={"kubernetes_kind": "JobSet"}))[0]
    crds.validate(owner)
    assert owner["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] == "rack"
    assert pod_template(owner)["metadata"]["annotations"] == {"x": "y"}
    assert pod_template(owner)["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"


def test_host_network_keeps_the_clusters_names_unless_the_overlay_says_otherwise():
    assert spec_of({"hostNetwork": True})["dnsPolicy"] == "ClusterFirstWithHostNet"
    own = {"hostNetwork": True, "dnsPolicy": "None", "dnsConfig": {"nameservers": ["169.254.20.10"]}}
    assert spec_of(own)["dnsPolicy"] == "None"
    assert "dnsPolicy" not in spec_of({"hostNetwork": False})


def test_what_launch_asks_of_the_scheduler_stays():
    profile = {"pod": {"affinity": node_affinity(TERM), "tolerations": [{"key": "a", "operator": "Exists"}]}}
    spec = spec_of({"affinity": node_affinity(GPU), "tolerations": [{"key": "b", "operator": "Exists"}]},
                   profile=profile)
    assert [taint["key"] for taint in spec["tolerations"]] == [
        "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "a", "b"]
    assert spec["affinity"]["podAntiAffinity"] == spec_of()["affinity"]["podAntiAffinity"]
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [*TERM["matchExpressions"], *GPU["matchExpressions"]]}  # both, not either
    own = {"podAffinityTerm": {"topologyKey": "rack"}, "weight": 1}
    apart = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [own]}}
    terms = spec_of({"affinity": apart}, resources={"nodes": 2})["affinity"]["podAntiAffinity"]
    assert terms["preferredDuringSchedulingIgnoredDuringExecution"][1:] == [own]


def test_the_item_trainer_is_merged_into_the_jobs_container():
    before = trainer_of(env={"A": "1"}, mounts=[{"path": "/data", "claim": "team"}])
    item = {
        "name": "trainer", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
        "resources": {"limits": {"rdma/hca": 1}, "claims": [{"name": "gpu"}]},
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}, {"name": "B", "value": "2"}],
        "envFrom": [{"configMapRef": {"name": "site"}}], "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "volumeMounts": [{"mountPath": "/data/", "subPath": "me"}, {"name": "dev", "mountPath": "/dev/infiniband"}],
        "ports": [{"containerPort": 9000, "name": "metrics"}],
    }  # fmt: skip
    volumes = [{"name": "dev", "hostPath": {"path": "/dev/infiniband"}},
               {"name": "tmp", "emptyDir": {"sizeLimit": "9Gi"}}]
    pod = {"containers": [item], "volumes": volumes, "resourceClaims": PLAIN["resourceClaims"]}
    spec = spec_of(pod, env={"A": "1"}, mounts=[{"path": "/data", "claim": "team"}])
    (after,) = spec["containers"]
    assert after["securityContext"] == {**before["securityContext"],
                                        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]}}
    assert after["resources"]["limits"] == {**before["resources"]["limits"], "rdma/hca": 1}
    env = {one["name"]: one for one in after["env"]}
    assert len(env) == len(after["env"]) == len(before["env"]) + 1 and env["A"] == item["env"][0]
    mounts = {one["mountPath"]: one for one in after["volumeMounts"]}
    assert mounts["/data/"] == {"name": "mount-0", "mountPath": "/data/", "subPath": "me"}
    assert len(mounts) == len(before["volumeMounts"]) + 1
    assert {one["name"]: one for one in spec["volumes"]}["tmp"] == volumes[1]
    assert (after["command"], after["image"]) == (before["command"], before["image"])


def test_init_containers_come_after_the_code_and_sidecars_after_the_trainer():
    other = {"image": "b", "restartPolicy": "Always"}
    pod = {"initContainers": [{"name": "proxy", **other}], "containers": [{"name": "stats", "image": "c"}]}
    spec = spec_of(pod, code=b"tar", profile={"pod": {"initContainers": [{"name": "first", "image": "a"}]}})
    assert [one["name"] for one in spec["initContainers"]] == ["unpack-code", "first", "proxy"]
    assert [one["name"] for one in spec["containers"]] == ["trainer", "stats"]
    assert [*spec][-3:] == ["volumes", "initContainers", "containers"]


def test_null_removes_and_other_lists_are_replaced():
    old = {"a": {"b": 1, "c": 2}, "args": [1], "containers": [{"name": "x", "image": "i", "tty": True}]}
    new = {"a": {"b": None}, "args": [2], "containers": [{"name": "x", "tty": None}], "d": {"e": None, "f": {}}}
    assert merge(old, new) == {"a": {"c": 2}, "args": [2], "containers": [{"name": "x", "image": "i"}], "d": {"f": {}}}
    assert old["a"] == {"b": 1, "c": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Writes a job and its cluster, and gives the request for them."""
    monkeypatch.chdir(tmp_path)

    def write(pod=None, *, profile=None, **job):
        job = {**JOB, "cluster": "c", **job, **({"pod": pod} if pod is not None else {})}
        Path("job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
        Path("clusters.yaml").write_text(yaml.safe_dump({"c": {**K8S, **(profile or {})}}, sort_keys=False))
        return Request(Path("job.yaml"))

    return write


def trainer(**fields):
    return {"containers": [{"name": "trainer", **fields}]}


REFUSED = [
    ({"restartPolicy": "Always"}, "pod.restartPolicy: cannot be set, because launch restarts pods through the Job (see "
                                  "restarts)"),
    ({"restartPolicy": None}, "pod.restartPolicy: cannot be set"),
    ({"terminationGracePeriodSeconds": 5}, "(see grace of the profile)"),
    ({"activeDeadlineSeconds": 5}, "(see resources.time_limit)"),
    ({"subdomain": "x"}, "pod.subdomain: cannot be set, because the nodes of a run find each other"),
    ({"hostname": "x"}, "pod.hostname: cannot be set"),
    ({"hostnameOverride": "x"}, "pod.hostnameOverride: cannot be set"),
    ({"setHostnameAsFQDN": True}, "pod.setHostnameAsFQDN: cannot be set"),
    ({"automountServiceAccountToken": True}, "pod.automountServiceAccountToken: must be false"),
    ({"automountServiceAccountToken": None}, "pod.automountServiceAccountToken: must be false"),
    ({"dnsPolicy": "Default"}, "pod.dnsPolicy: must be ClusterFirst"),
    ({"hostNetwork": True, "dnsPolicy": "ClusterFirst"}, "pod: dnsPolicy must be ClusterFirstWithHostNet with host"),
    ({"ephemeralContainers": [{"name": "x"}]}, "pod.ephemeralContainers: cannot be set"),
    ({"containers": None}, "pod.containers: cannot be removed"),
    ({"volumes": None}, "pod.volumes: cannot be removed"),
    (trainer(image="x"), "pod.containers[0].image: cannot be set here; set `image` of the job"),
    (trainer(command=["x"]), "pod.containers[0].command: cannot be set, because the job says what is run"),
    (trainer(args=["x"]), "pod.containers[0].args: cannot be set"),
    (trainer(workingDir="/x"), "pod.containers[0].workingDir: cannot be set"),
    (trainer(restartPolicy="Always"), "pod.containers[0].restartPolicy: cannot be set"),
    (trainer(env=None), "pod.containers[0].env: cannot be removed"),
    (trainer(resources={"limits": None}), "pod.containers[0].resources.limits: cannot be removed"),
    (trainer(env=[{"name": "LAUNCH_NODES", "value": "3"}]), "pod.containers[0].env[0].name: cannot be LAUNCH_NODES"),
    (trainer(env=[{"name": "MASTER_ADDR", "value": "x"}]), "(see env of the job)"),
    (trainer(env=[{"name": "PYTHONPATH", "value": "x"}]), "(see env of the job)"),
    (trainer(volumeMounts=[{"name": "x", "mountPath": "/etc/launch/x"}]), "/etc/launch/x overlaps /etc/launch"),
    (trainer(volumeMounts=[{"name": "x", "mountPath": "/opt"}]), "/opt overlaps /opt/code"),
    (trainer(resources={"requests": {"nvidia.com/gpu": "2"}}), "the container trainer: nvidia.com/gpu "
                                                               "cannot be set here; set resources.gpus_per_node"),
    (trainer(resources={kind: {"nvidia.com/gpu": None} for kind in ("limits", "requests")}), "nvidia.com/gpu "
                                                                                            "cannot be set here"),
    (trainer(volumeMounts=[{"mountPath": "/dta", "subPath": "x"}]), "the mount at /dta must have the name of a volume"),
    (trainer(volumeMounts=[{"name": "x", "mountPath": "/workspace"}]), "nothing can be mounted at /workspace here"),
    ({"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "y"}]},
     "pod.containers[1].name: a is there twice"),
    (trainer(volumeMounts=[{"name": "gone", "mountPath": "/x"}]),
     "pod: the container trainer: volumeMounts has gone, which is no item of pod.volumes"),
    (trainer(securityContext={"privileged": True}),
     "pod: the container trainer: privileged needs allowPrivilegeEscalation: true beside it"),
    ({"containers": [{"name": "stats"}]}, "pod: the container stats has no image (the job's own is called trainer)"),
    ({"initContainers": [{"name": "unpack-code", "image": "x"}]}, "the name unpack-code is reserved by launch"),
    ({"initContainers": [{"name": "trainer", "image": "x"}]}, "the name trainer is reserved by launch"),
    ({"volumes": [{"name": "config", "emptyDir": {}}]}, "pod.volumes[0].name: the name config is reserved by launch"),
    ({"volumes": [{"name": "mount-0", "emptyDir": {}}]}, "the name mount-0 is reserved by launch"),
    ({"labels": {"launch/run-id": "x"}}, "pod.labels.launch/run-id: cannot be set"),
    ({"labels": {"app.kubernetes.io/name": "x"}}, "pod.labels.app.kubernetes.io/name: cannot be set"),
    ({"job": {"labels": {"batch.kubernetes.io/x": "x"}}}, "pod.job.labels.batch.kubernetes.io/x: cannot be set"),
    ({"job": {"annotations": {"launch/name": "x"}}}, "pod.job.annotations.launch/name: cannot be set"),
]
MISTAKES = [
    (trainer(imagee="x"), "pod.containers[0].imagee: unknown key of Container (did you mean image?)"),
    ({"anotations": {}}, "pod.anotations: unknown key of PodSpec (did you mean annotations?)"),
    ({"runtime_class": "x"}, "did you mean runtimeClassName?"),
    ({"hostNetwork": "yes"}, "pod.hostNetwork: must be true or false, not 'yes'"),
    ({"schedulerName": 3}, 'pod.schedulerName: must be text, so in quotes: "3", not 3'),
    ({"priority": True}, "pod.priority: must be a whole number, not true"),
    ({"tolerations": {"key": "a"}}, "pod.tolerations: must be a list, not a mapping"),
    ({"nodeSelector": ["a"]}, "pod.nodeSelector: must be a mapping, not a list"),
    ({"nodeSelector": {"a": True}}, 'pod.nodeSelector.a: must be text, so in quotes: "true"'),
    ({"affinity": "x"}, "pod.affinity: must be a mapping, not 'x'"),
    ({"containers": [None]}, "pod.containers[0]: must be a mapping, not nothing"),
    ({"containers": [{"image": "x"}]}, "pod.containers[0].name: is required"),
    ({"volumes": [{"name": "x", "persistentVolumeClaim": {}}]}, "persistentVolumeClaim.claimName: is required"),
    ({"annotations": {"a": 1}}, 'pod.annotations.a: must be text, so in quotes: "1", not 1'),
    ({"job": {"spec": {}}}, "pod.job.spec: unknown key; known here: annotations, labels"),
    ("x", "pod: must be a mapping, not 'x'"),
    ({"schedulerName": {"a": 1}}, "pod.schedulerName: must be text, not a mapping"),
]


@pytest.mark.parametrize(("pod", "words"), [*REFUSED, *MISTAKES], ids=lambda case: str(case)[:60])
def test_what_cannot_be_is_refused_with_its_place_and_the_right_setting(pod, words, folder):
    with pytest.raises(SpecError) as refused:
        prepare(folder(pod), {})
    assert words in refused.value.message
    assert all(line.startswith("job.yaml:") for line in refused.value.message.splitlines())


@pytest.mark.parametrize(("pod", "words"), [*REFUSED, *MISTAKES], ids=lambda case: str(case)[:60])
def test_the_same_holds_for_a_profile(pod, words, folder):
    with pytest.raises(SpecError) as refused:
        prepare(folder(profile={"pod": pod}), {})
    assert words.removeprefix("pod: ") in refused.value.message


def test_every_mistake_is_told_at_once_with_its_line(folder):
    request = folder({"restartPolicy": "Never", "annotations": {"a": 1}, "hostNetwork": 1,
                      **trainer(image="x", evn=[])})
    with pytest.raises(SpecError) as refused:
        prepare(request, {})
    lines = Path("job.yaml").read_text().splitlines()
    found = {line.split(": ")[1]: int(line.split(":")[1]) for line in refused.value.message.splitlines()}
    assert found.keys() == {"pod.restartPolicy", "pod.annotations.a", "pod.hostNetwork", "pod.containers[0].image",
                            "pod.containers[0].evn"}
    assert all(path.rpartition(".")[2] in lines[number - 1] for path, number in found.items())


def test_gpus_of_another_name_and_a_mount_of_the_jobs_own_are_known(folder):
    gpu = trainer(resources={"limits": {"amd.com/gpu": "1"}})
    prepare(folder(gpu), {})
    with pytest.raises(SpecError, match=r"amd\.com/gpu cannot be set here"):
        prepare(folder(gpu, profile={"gpu_resource": "amd.com/gpu"}), {})
    sub = trainer(volumeMounts=[{"mountPath": "/workspace", "subPath": "me"}, {"mountPath": "/tmp", "subPath": "t"}])
    prepare(folder(sub, mounts=[{"path": "/workspace", "claim": "team"}]), {})


def test_a_container_beside_the_trainer_is_noted(folder):
    beside = {"containers": [{"name": "stats", "image": "x"}]}
    (note,) = prepare(folder(beside), {}).notes
    assert note.startswith("pod.containers: the run ends only when stats ends, too; a sidecar")
    assert "initContainers with restartPolicy: Always" in note
    assert prepare(folder(profile={"pod": beside}), {}).notes == [note]
    native = {"initContainers": [{"name": "stats", "image": "x", "restartPolicy": "Always"}], **trainer(tty=True)}
    assert prepare(folder(native), {}).notes == []


@pytest.mark.parametrize("backend", ["slurm", "local"])
def test_a_section_for_another_back_end_is_noted(backend, folder):
    request = folder({"hostNetwork": True}, profile={"backend": backend})
    assert prepare(request, {}).notes[0] == f"pod: ignored, because it is not for {backend}"


@pytest.mark.parametrize("name", ["multus", "openshift"])
def test_what_the_page_on_clusters_shows_is_the_golden_file(name):
    page = (GOLDEN.parents[1] / "docs/clusters.md").read_text(encoding="utf-8")
    for part in ("profile", "job"):
        assert f"```yaml\n{(GOLDEN / f'k8s-{name}.{part}.yaml').read_text(encoding='utf-8')}```" in page


@pytest.mark.parametrize(("kind", "value"), [
    ("list[str]", ["a", 1]), ("List[str]", ["a", 1]), ("dict(str, str)", {1: 1}), ("Dict[str, str]", {1: 1})])
def test_types_are_read_as_both_clients_write_them(kind, value):
    assert list(_mistakes(value, kind, ("x",))) == [(("x", 1), 'must be text, so in quotes: "1", not 1')]


@pytest.mark.parametrize(("job", "said"), [
    ({"image": None}, "image: launch-trainer:0.1.0 names no registry"),
    ({"resources": {"gpus_per_node": 1}}, "resources.memory_per_node: not set, so the pods reserve no memory")])
def test_what_an_administrator_would_ask_about_is_noted(folder, job, said):
    (note,) = prepare(folder(**job), {}).notes
    assert note.startswith(said)


def test_an_amount_of_a_resource_may_be_a_number(folder):
    prepared = prepare(folder(profile={"extra_resources": {"rdma/hca": 1}}), {})
    assert prepared.profile.extra_resources == {"rdma/hca": "1"}


def test_a_capability_that_a_user_will_not_have_is_noted(folder):
    locks = trainer(securityContext={"capabilities": {"add": ["IPC_LOCK"]}})
    (note,) = prepare(folder(locks), {}).notes
    assert note.startswith("pod.containers: capabilities that are added have no effect on user 1000 (run_as_user)")
    assert prepare(folder(locks, profile={"run_as_user": None}), {}).notes == []
