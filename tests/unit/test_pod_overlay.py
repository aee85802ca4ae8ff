"""What a cluster or a job adds to pods: merged, checked, and refused where launch's promises rest on it."""

import pytest
import yaml
from pydantic import ValidationError

from launcher.backends.kubernetes.objects import run_objects
from launcher.backends.kubernetes.overlay import merged
from launcher.errors import SpecError
from launcher.job.load import Document
from launcher.services.job_model import check_job
from tests import jobs

RUN_JOB = {"name": "a", "run": ["true"], "resources": {"nodes": 2, "gpus_per_node": 1}}


def template_of(pod, *, profile=None, kind="Job"):
    """The pod template of a job with this overlay."""
    cluster = {"backend": "kubernetes", "kubernetes_kind": kind, **({"pod": profile} if profile else {})}
    first = run_objects(jobs.plan_of({**RUN_JOB, "pod": pod} if pod else RUN_JOB, cluster))[0]
    spec = first["spec"]
    return spec["replicatedJobs"][0]["template"]["spec"]["template"] if kind == "JobSet" else spec["template"]


def trainer(template):
    """The job's own container."""
    return next(item for item in template["spec"]["containers"] if item["name"] == "trainer")


def what_is_wrong(**pod):
    """The lines about an overlay."""
    with pytest.raises(SpecError) as error:
        check_job(Document("job.yaml", {**RUN_JOB, "pod": pod}, {}, ()))
    return [line.removeprefix("job.yaml:1: pod: ") for line in error.value.message.splitlines()]


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_fields_of_the_pod_and_its_metadata(kind):
    found = template_of({"annotations": {"a": "b"}, "labels": {"team": "nlp"}, "runtimeClassName": "nvidia",
                         "schedulerName": "kai", "resourceClaims": [{"name": "gpu", "resourceClaimName": "one"}]},
                        kind=kind)
    assert found["metadata"]["annotations"] == {"a": "b"}
    assert found["metadata"]["labels"]["team"] == "nlp" and found["metadata"]["labels"]["launch/run-id"]
    assert found["spec"]["schedulerName"] == "kai"
    assert found["spec"]["resourceClaims"] == [{"name": "gpu", "resourceClaimName": "one"}]


def test_metadata_of_the_job_itself():
    overlay = {"job": {"labels": {"kueue.x-k8s.io/priority-class": "high"}, "annotations": {"x": "y"}}}
    metadata = run_objects(jobs.plan_of({**RUN_JOB, "pod": overlay}, {"backend": "kubernetes"}))[0]["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert metadata["annotations"] == {"launch/name": "a", "x": "y"}


def test_the_jobs_own_container_keeps_what_launch_gives_it():
    found = trainer(template_of({"containers": [{
        "name": "trainer", "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}, "envFrom": [
            {"secretRef": {"name": "s3"}}], "env": [{"name": "MINE", "value": "1"}],
        "volumeMounts": [{"mountPath": "/tmp", "name": "tmp", "subPath": "x"}]}]}))
    assert found["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    assert found["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert {"name": "MINE", "value": "1"} in found["env"] and len(found["env"]) > 5
    assert [mount for mount in found["volumeMounts"] if mount["mountPath"] == "/tmp"] == [
        {"name": "tmp", "mountPath": "/tmp", "subPath": "x"}]
    assert found["command"] == ["true"]


def test_affinity_is_added_to_that_of_launch():
    terms = [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
    zone = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}}
    found = template_of({"affinity": {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}},
        "podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [zone]}}})["spec"]["affinity"]
    assert found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] == terms
    hosts, other = found["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert (hosts["topologyKey"], other) == ("kubernetes.io/hostname", zone)


def test_the_jobs_overlay_comes_after_the_clusters():
    found = template_of({"annotations": {"a": "job"}, "priorityClassName": None}, profile={
        "annotations": {"a": "cluster", "b": "cluster"}, "priorityClassName": "low", "hostNetwork": True})
    assert found["metadata"]["annotations"] == {"a": "job", "b": "cluster"}
    assert "priorityClassName" not in found["spec"]
    assert found["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"  # names of the cluster are found from there, too


def test_launch_unpacks_before_a_users_init_container():
    plan = jobs.plan_of({**RUN_JOB, "pod": {"initContainers": [{"name": "mine", "image": "x"}]}},
                        {"backend": "kubernetes"}, code_archive=b"tar", code_digest="5eed")
    names = [item["name"] for item in run_objects(plan)[0]["spec"]["template"]["spec"]["initContainers"]]
    assert names == ["unpack-code", "mine"]


def test_how_things_are_merged():
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": None, "d": 3}}) == {"a": {"c": 2, "d": 3}}
    assert merged({"volumes": [{"name": "tmp", "emptyDir": {}}]}, {"volumes": [{"name": "tmp", "hostPath": {}}]}) == {
        "volumes": [{"name": "tmp", "hostPath": {}}]}
    assert merged({"hostAliases": [1]}, {"hostAliases": [2]}) == {"hostAliases": [2]}


@pytest.mark.parametrize(("field", "value", "reason"), [
    ("restartPolicy", "Always", "restartPolicy: cannot be set (launch restarts pods through the Job"),
    ("terminationGracePeriodSeconds", 5, "terminationGracePeriodSeconds: cannot be set (see grace"),
    ("hostname", "x", "hostname: cannot be set (the nodes of a run find each other by it)"),
    ("spec", {"hostNetwork": True}, "spec: cannot be set (fields of a PodSpec stand right below pod)"),
    ("labels", {"launch/run-id": "x"}, "labels.launch/run-id: cannot be set (launch finds its objects by it)"),
    ("initContainers", [{"name": "unpack-code"}], "initContainers: unpack-code is launch's own"),
    ("volumes", [{"name": "code", "emptyDir": {}}], "volumes: code is launch's own"),
    ("containers", [{"name": "trainer", "image": "x"}], "containers.trainer.image: cannot be set (see image)"),
    ("containers", [{"name": "trainer", "env": [{"name": "NODE_RANK", "value": "7"}]}],
     "containers.trainer.env: NODE_RANK is set by launch itself"),
    ("containers", [{"name": "trainer", "volumeMounts": [{"name": "x", "mountPath": "/opt"}]}],
     "containers.trainer.volumeMounts: /opt is where launch puts the job's files"),
    ("containers", [{"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "4"}}}],
     "containers.trainer.resources: nvidia.com/gpu cannot be set"),
    ("hostNetwerk", True, "hostNetwerk: unknown key, did you mean hostNetwork?"),
    ("hostNetwork", "yes", "hostNetwork: must be true or false, not 'yes'"),
    ("containers", [{"name": "trainer", "imagee": "x"}], "containers[0].imagee: unknown key, did you mean image?"),
    ("tolerations", {"key": "x"}, "tolerations: must be a list, not {'key': 'x'}"),
])
def test_what_cannot_be_is_refused_with_the_reason(field, value, reason):
    assert [line for line in what_is_wrong(**{field: value}) if line.startswith(reason)]


def test_all_problems_come_at_once():
    assert len(what_is_wrong(restartPolicy="Never", hostname="x", hostNetwerk=True)) == 3


def test_a_profile_is_checked_like_a_job():
    with pytest.raises(ValidationError, match="restartPolicy: cannot be set"):
        jobs.profile_of({"backend": "kubernetes", "pod": {"restartPolicy": "Always"}})


def test_a_container_beside_the_jobs_own_and_options_of_another_back_end_are_told(tmp_path, launch):
    launch.cwd = tmp_path
    job = {**RUN_JOB, "pod": {"containers": [{"name": "metrics", "image": "x"}]}, "sbatch": ["--nice=3"]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = launch.run("render", "job.yaml", "--backend", "kubernetes")
    assert "pod.containers: the run ends only when metrics ended, too" in done.stderr
    assert "sbatch: not used, since the job goes to back end kubernetes" in done.stderr
    assert "pod: not used, since the job goes to back end slurm" in launch.run(
        "render", "job.yaml", "--backend", "slurm").stderr
