"""`launch estimate`, the refusal at submit, and the nearest change: from a job file to the words that a user reads."""

import json
from pathlib import Path

import pytest
import yaml

from launcher.cli import main

GIB = 2**30
CONFIG = {"model_type": "internlm2", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
          "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 92544, "bias": False}
CLUSTERS = {"big": {"backend": "kubernetes", "gpu_memory": "80Gi", "gpus_per_node": 8, "max_nodes": 4},
            "small": {"backend": "slurm", "gpu_memory": "24Gi", "gpus_per_node": 2, "max_nodes": 1},
            "unknown": {"backend": "slurm"}, "here": {"backend": "local", "gpu_memory": "8Gi"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clusters.yaml").write_text(yaml.safe_dump(CLUSTERS))
    return tmp_path


@pytest.fixture
def write(folder):
    """Writes job.yaml; sections of `train:` by keyword. Its activations are as small as they can be, unless `auto`."""

    def written(cluster="big", gpus=1, resources=None, auto=False, **sections):
        policy = {} if auto else {"gradient_checkpointing": "offload"}
        train = {"data": {"sources": [{"path": "x"}]}, **sections}
        train["model"] = {"path": "internlm/internlm2-chat-7b", **policy, **sections.get("model", {})}
        train["data"] = {"sources": [{"path": "x"}], **sections.get("data", {})}
        values = {"name": "a", "cluster": cluster, "resources": {"gpus_per_node": gpus, **(resources or {})}}
        (folder / "job.yaml").write_text(yaml.safe_dump({**values, "train": train}))

    return written


def run(capsys, *args):
    """Exit code, stdout and stderr of `launch ARGS`."""
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    return ended.value.code, *capsys.readouterr()


def found(capsys, *args):
    """What `launch estimate job.yaml --json` prints."""
    _, out, _ = run(capsys, "estimate", "job.yaml", "--json", *args)
    return json.loads(out)


WIDE = {"model": {"gradient_checkpointing": False}, "optimizer": {"batch_size": 16}}


def test_parts_and_verdict_are_shown(write, capsys):
    write(model={"gradient_checkpointing": "full"})
    code, out, err = run(capsys, "estimate", "job.yaml")
    assert (code, err) == (0, "")
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "5.12" in rows["weights"]
    assert rows["gradient checkpointing"].endswith("full")
    assert "at another moment" in rows["optimizer step"]
    assert rows["parameters"].endswith("7,737,708,544, 167,772,160 of them trained")
    assert "of 85.90 GB (gpu_memory of cluster big: 80Gi)" in rows["each GPU"]
    assert rows["verdict"].endswith("fits")
    assert "nearest" not in out


def test_the_parts_that_count_add_up(write, capsys):
    write()
    lines = run(capsys, "estimate", "job.yaml")[1].split("\n\n")[0].splitlines()[1:]
    sizes = [float(line.split()[-1]) for line in lines if "another" not in line]
    assert sum(sizes[:-1]) == pytest.approx(sizes[-1], abs=0.01 * len(sizes))


def test_json_has_every_part_in_bytes(write, capsys):
    write(gpus=8, resources={"nodes": 2, "memory_per_node": "512Gi"})
    values = found(capsys)
    assert values["parameters"] == 7_737_708_544
    assert set(values["gpu"]) >= {"weights", "adapters", "gradients", "optimizer", "activations", "loss", "context"}
    assert (values["verdict"], values["reasons"], values["change"]) == ("fits", [], None)
    assert (values["nodes"], values["per_node"], values["gpu_limit"]) == (2, 8, 80 * GIB)
    assert values["host_limit"] == 512 * GIB
    assert values["gpu_total"] < values["gpu_limit"]


@pytest.mark.parametrize("text", ["24GiB", "24Gi", "25769803776"])
def test_the_card_is_given_as_people_write_it(write, capsys, text):
    write()
    assert found(capsys, "--gpu-memory", text)["gpu_limit"] == 24 * GIB


@pytest.mark.parametrize("text", ["big", "", "0GiB", "-80GiB"])
def test_a_card_of_no_size_is_refused(write, capsys, text):
    write()
    code, out, err = run(capsys, "estimate", "job.yaml", "--gpu-memory", text)
    assert (code, out) == (2, "")
    assert err == f"error: --gpu-memory: must be a size such as 80GiB or 85G, not '{text}'\n"


def test_without_a_card_nobody_can_tell(write, capsys):
    write(cluster="unknown")
    code, out, _ = run(capsys, "estimate", "job.yaml")
    assert code == 0
    assert "cannot tell" in out
    assert "give --gpu-memory, or gpu_memory in the cluster's profile" in out


def test_an_unknown_model_is_not_guessed_at(write, capsys):
    write(model={"path": "acme/new-model"})
    code, out, err = run(capsys, "estimate", "job.yaml")
    assert (code, err) == (0, "")
    assert "cannot tell" in out
    assert "model.path acme/new-model: no folder with a config.json here, and no name of a known model" in out
    assert found(capsys)["verdict"] == "cannot tell"
    assert run(capsys, "submit", "job.yaml", "--dry-run")[0] == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert"}', "[" * 100_000, "\udcff"])
def test_a_config_file_that_cannot_be_used_is_told(write, folder, capsys, text):
    write(model={"path": "model"})
    (folder / "model").mkdir()
    (folder / "model/config.json").write_bytes(text.encode(errors="surrogateescape"))
    code, out, err = run(capsys, "estimate", "job.yaml")
    assert (code, err) == (0, "")
    assert "cannot tell" in out
    assert str(Path("model/config.json")) in out


MIXTURES = [{"model_type": "mixtral", "num_local_experts": 8}, {"model_type": "qwen3_moe", "num_experts": 128},
            {"model_type": "deepseek_v3", "n_routed_experts": 256}, {"model_type": "llama", "num_local_experts": 8},
            {"model_type": "llava", "text_config": {"model_type": "mixtral", "num_local_experts": 8}}]


@pytest.mark.parametrize("raw", MIXTURES)
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_mixture_of_experts_is_not_weighed_as_if_it_could_be_quantised(write, folder, capsys, raw, quantization):
    write(model={"path": "model", "quantization": quantization})
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps({**CONFIG, **raw}))
    for verb in (("estimate", "job.yaml"), ("submit", "job.yaml", "--dry-run")):
        code, out, err = run(capsys, *verb)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: train.model.quantization is {quantization}, but model is a mixture of experts: ")
        assert "experts of each layer can be neither quantised nor adapted here" in err
        assert "hint:  set model.quantization to none" in err


def test_a_mixture_of_experts_in_bf16_is_not_guessed_at(write, folder, capsys):
    write(model={"path": "model", "quantization": "none"})
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps({**CONFIG, **MIXTURES[0]}))
    code, out, _ = run(capsys, "estimate", "job.yaml")
    assert code == 0 and "cannot tell" in out and "got a mixture of 8 experts, known: dense models" in out


def test_the_shape_is_read_beside_the_weights(write, folder, capsys):
    write(model={"path": "./model"})
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1}))
    values = found(capsys)
    assert values["parameters"] == 7_737_708_544 - 31 * (4096 * 6144 + 4096**2 + 3 * 4096 * 14336 + 2 * 4096)
    assert values["model"].endswith("model/config.json")


def test_a_folder_of_the_cluster_is_known_by_its_name(write, capsys):
    write(model={"path": "/models/internlm2-chat-7b"})
    values = found(capsys)
    assert values["parameters"] == 7_737_708_544
    assert values["model"] == "internlm/internlm2-chat-7b, by the name of the folder /models/internlm2-chat-7b"


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-that-name/model", "a\0b"])
def test_odd_paths_are_only_unknown(write, capsys, path):
    write(model={"path": path})
    assert found(capsys)["verdict"] == "cannot tell"


def test_a_job_without_training_has_nothing_to_estimate(folder, capsys):
    (folder / "job.yaml").write_text("name: a\nrun: ['true']\n")
    code, out, err = run(capsys, "estimate", "job.yaml")
    assert (code, out) == (2, "")
    assert "has `run`, and launch estimate takes jobs with `train`" in err
    assert run(capsys, "submit", "job.yaml", "--dry-run")[0] == 0


def test_submit_refuses_what_cannot_fit(write, capsys, launch_home):
    write(**WIDE)
    code, out, err = run(capsys, "submit", "job.yaml")
    assert (code, out) == (2, "")
    first, hint = err.splitlines()
    assert first.startswith("error: job.yaml: train: each GPU needs 1")
    assert first.endswith(" GB, but has 85.90 GB (gpu_memory of cluster big: 80Gi)")
    assert hint == ("hint:  nearest change that fits: --set train.model.gradient_checkpointing=auto; see launch "
                    "estimate job.yaml; to send it all the same: --even-if-too-big")
    assert not (launch_home / "runs").exists()
    assert run(capsys, "estimate", "job.yaml")[0] == 2


def test_validate_and_render_do_not_weigh(write, capsys):
    write(**WIDE)
    assert run(capsys, "validate", "job.yaml")[0] == 0
    assert run(capsys, "render", "job.yaml")[0] == 0


def test_the_refusal_can_be_overridden(write, capsys):
    write(**WIDE)
    assert run(capsys, "submit", "job.yaml", "--dry-run")[0] == 2
    code, out, _ = run(capsys, "submit", "job.yaml", "--dry-run", "--even-if-too-big")
    assert code == 0
    assert "kind: Job" in out


def test_what_is_sent_on_this_machine_is_weighed_too(write, capsys):
    write(cluster="here", **WIDE)
    assert "but has 8.59 GB (gpu_memory of cluster here: 8Gi)" in run(capsys, "submit", "job.yaml")[2]


def test_a_close_call_is_sent_with_a_warning(write, capsys):
    write()
    card = round(found(capsys)["gpu_total"] * 1.01)
    code, out, _ = run(capsys, "estimate", "job.yaml", "--gpu-memory", str(card))
    assert code == 0
    assert "cannot tell" in out
    assert "and the estimate is good to 5%" in out
    clusters = {"big": {**CLUSTERS["big"], "gpu_memory": str(card)}}
    Path("clusters.yaml").write_text(yaml.safe_dump(clusters))
    code, _, err = run(capsys, "submit", "job.yaml", "--dry-run")
    assert code == 0
    assert err.startswith("warning: job.yaml: train: each GPU: ")


def test_memory_and_shm_of_the_node_count_when_they_are_given(write, capsys):
    write(gpus=8, resources={"memory_per_node": "8Gi", "shm": "64Mi"})
    needed = -(-found(capsys)["host"] // GIB)
    code, _, err = run(capsys, "submit", "job.yaml")
    assert code == 2
    assert " GB at least, but has 8.59 GB (resources.memory_per_node: 8Gi)" in err
    assert " GB of /dev/shm at least, but has 0.07 GB (resources.shm: 64Mi)" in err
    assert f"--set resources.memory_per_node={needed}Gi --set resources.shm=1Gi;" in err
    write(gpus=8)
    assert run(capsys, "submit", "job.yaml", "--dry-run")[0] == 0


def test_on_a_cpu_the_node_decides(write, capsys):
    write(gpus=0, resources={"memory_per_node": "64Gi"})
    assert found(capsys)["verdict"] == "fits"
    write(gpus=0, resources={"memory_per_node": "1Gi"})
    values = found(capsys)
    assert values["verdict"] == "does not fit"
    assert list(values["change"]) == ["resources.memory_per_node"]
    write(gpus=0)
    assert "give resources.memory_per_node" in run(capsys, "estimate", "job.yaml")[1]


FULL = {"model": {"lora": None, "quantization": "none"}}
CHANGES = [
    (1, {"optimizer": {"batch_size": 32, "accumulation": 2}},
     {"train.optimizer.batch_size": "16", "train.optimizer.accumulation": "4"}),
    (8, {"model": {"quantization": "none"}}, {"train.optimizer.deepspeed.zero_stage": "3"}),
    (8, {**FULL, "optimizer": {"deepspeed": {"zero_stage": 3}}},
     {"resources.nodes": "2", "train.optimizer.accumulation": "8"}),
    (1, {"model": {"quantization": "none"}, "optimizer": {"deepspeed": None}}, {"train.model.quantization": "nf4"}),
    (1, {**FULL, "optimizer": {"accumulation": 1}}, {"train.optimizer.deepspeed.offload": "cpu"}),
    (8, {"data": {"max_length": 65536}}, {"train.data.max_length": "32768"}),
]  # fmt: skip


def options(change):
    """A change on the command line."""
    return [word for key, value in change.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize(("gpus", "sections", "change"), CHANGES)
def test_the_nearest_change_is_the_first_that_is_enough(write, capsys, gpus, sections, change):
    write(gpus=gpus, **sections)
    card = str(round(found(capsys, *options(change))["gpu_total"] * 1.06))
    values = found(capsys, "--gpu-memory", card)
    assert (values["verdict"], values["change"]) == ("does not fit", change)


def test_more_gpus_are_within_the_cluster(write, capsys):
    """Its nodes are both in use; states that wait in the node's memory are the next best."""
    write(cluster="small", gpus=2, **FULL, optimizer={"deepspeed": {"zero_stage": 3}})
    assert found(capsys)["change"] == {"train.optimizer.deepspeed.offload": "cpu"}


def test_some_jobs_fit_nowhere(write, capsys):
    write(cluster="small")
    code, out, _ = run(capsys, "estimate", "job.yaml", "--gpu-memory", "1GiB")
    assert code == 2
    assert "none of batch, ZeRO stage, GPUs, precision, offload and length" in out


SECTIONS = [
    {}, WIDE, FULL, {**FULL, "optimizer": {"deepspeed": None}}, {"model": {"quantization": "none"}},
    {"data": {"max_length": 65536}, "optimizer": {"batch_size": 3}},
    {"model": {"gradient_checkpointing": False, "quantization": "none"}, "optimizer": {"deepspeed": {"zero_stage": 0}}},
]  # fmt: skip


@pytest.mark.parametrize("card", ["9GiB", "24GiB", "80GiB"])
@pytest.mark.parametrize("sections", SECTIONS)
def test_the_change_makes_it_fit_and_none_of_it_can_be_left_out(write, capsys, sections, card):
    write(resources={"memory_per_node": "32Gi"}, auto=True, **sections)
    values = found(capsys, "--gpu-memory", card)
    if values["change"] is None:
        assert values["verdict"] == "fits" or card == "9GiB"
        return
    changed = found(capsys, "--gpu-memory", card, *options(values["change"]))
    assert (changed["verdict"], changed["change"]) == ("fits", None)
    for key in set(values["change"]) - {"train.optimizer.batch_size", "train.optimizer.accumulation"}:
        fewer = {other: value for other, value in values["change"].items() if other != key}
        assert found(capsys, "--gpu-memory", card, *options(fewer))["verdict"] != "fits"
