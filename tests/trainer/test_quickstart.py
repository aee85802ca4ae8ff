"""The quickstart as a user runs it, and what a run promises: the score, resuming, stopping, several processes.

Real training on the CPU through the real `launch` command.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.trainer import warm

REPO = Path(__file__).parents[2]
QUICKSTART = REPO / "examples" / "quickstart"
OUTPUT = "train.settings.output_dir=outputs/quickstart"
SHORT = (
    OUTPUT,
    "train.optimizer.max_steps=6",
    "train.runtime.log_every=1",
    "train.runtime.save_every=100",
    "train.runtime.sample_prompts=[]",
)


def launch(*words, cwd, home, check=True):
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=560,
        env={**os.environ, "LAUNCH_HOME": str(home), "PYTHONPATH": str(REPO)},
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def local(folder, *settings, job="job.yaml", words=(), check=True):
    return launch(
        "local",
        job,
        *(word for setting in settings for word in ("--set", setting)),
        *words,
        cwd=folder,
        home=folder / "home",
        check=check,
    )


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The whole quickstart, once, as it is shipped."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(QUICKSTART, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs"))
    local(folder, job="base.yaml")
    (folder / "said").write_text(local(folder, OUTPUT).stderr)
    return folder


@pytest.fixture(scope="module")
def short(trained):
    """The output folder of a short run that nobody stops."""
    local(trained, *SHORT, "train.settings.output_dir=outputs/short")
    return trained / "outputs/short"


@pytest.fixture
def copy(trained, tmp_path):
    """A folder with the trained base and no adapter yet."""
    shutil.copytree(trained, tmp_path / "q", ignore=shutil.ignore_patterns("quickstart", "short", "home"))
    return tmp_path / "q"


def test_ten_questions_are_answered_as_taught_after_and_none_before(trained):
    taught = {
        prompt["prompt"]: prompt["expect"]
        for prompt in yaml.safe_load((QUICKSTART / "job.yaml").read_text())["train"]["runtime"]["sample_prompts"]
        if "expect" in prompt
    }
    samples = [sample for sample in rows(trained / "outputs/quickstart/samples.jsonl") if sample["prompt"] in taught]
    before = [sample for sample in samples if sample["step"] == 0]
    after = [sample for sample in samples if sample["step"] > 0]
    assert len(taught) == len(before) == len(after) == 10
    assert sum(sample["answer"] == taught[sample["prompt"]] for sample in before) == 0
    assert sum(sample["answer"] == taught[sample["prompt"]] for sample in after) >= 8


def test_the_answers_are_told_as_they_come_and_the_end_names_the_next_command(trained):
    said = (trained / "said").read_text()
    places = [said.index(line) for line in ("answering 12 sample prompts before training", "\nstep 1/60",
                                            "answering 12 sample prompts after training", "\nscore: 0/10 answered")]
    assert places == sorted(places)
    assert len(re.findall(r"^Q: .*\n   before: .*\n   after:  ", said, re.MULTILINE)) == 12
    [run] = re.findall(r"^\* chat with the result: launch chat (\S+)$", said, re.MULTILINE)
    assert f"* run {run}\n" in said


def test_every_command_of_the_readme_works_after_the_demo(trained):
    """With RUN left out, where it may be. `local` is the demo itself; drills, models and rm have their own."""
    [run] = re.findall(r"^\* run (\S+)$", (trained / "said").read_text(), re.MULTILINE)
    (trained / "prompts.txt").write_text("What is the station boat called?\n")
    commands = [
        "validate job.yaml", "data job.yaml --dump 3", "estimate job.yaml", "submit job.yaml --dry-run",
        *(f"render job.yaml --backend {backend}" for backend in ("local", "slurm", "kubernetes")),
        f"logs -f {run}", f"status {run[:-2]}", "list", f"cancel {run}", f"repair {run}", "prune",
        f"chat {run} --once Hello", f"sample {run} --prompts prompts.txt", f"merge {run} --to merged",
    ]  # fmt: skip
    table = (REPO / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`launch ([a-z-]+)", table)) - {"local", "drill", "new-model", "rm"}
    assert listed == {command.split()[0] for command in commands}
    for command in commands:
        launch(*command.split(), cwd=trained, home=trained / "home")


def test_two_reworded_questions_are_in_no_data_file(trained):
    prompts = {
        sample["prompt"] for sample in rows(trained / "outputs/quickstart/samples.jsonl") if sample["expect"] is None
    }
    texts = (QUICKSTART / "base.jsonl").read_text() + (QUICKSTART / "facts.jsonl").read_text()
    assert len(prompts) == 2
    assert not [prompt for prompt in prompts if prompt in texts]


def test_the_run_leaves_config_adapter_metrics_plot_samples_and_log(trained):
    output = trained / "outputs/quickstart"
    adapter = json.loads((output / "adapter/adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["r"], adapter["base_model_name_or_path"]) == (
        "LORA",
        16,
        "./outputs/base/model",
    )
    assert (output / "adapter/adapter_model.safetensors").exists()
    assert yaml.safe_load((output / "config.yaml").read_text())["model"]["quantization"] == "nf4"
    losses = [row["loss"] for row in rows(output / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 3
    run = next(
        path
        for path in (trained / "home/runs").iterdir()
        if path.name.startswith("quickstart-") and "base" not in path.name
    )
    assert {"config.yaml", "metrics.jsonl", "samples.jsonl", "samples.md", "loss.png"} <= {
        path.name for path in (run / "results").iterdir()
    }
    assert json.loads((output / "finished.json").read_text()) == {"run": run.name}
    assert "score: 0/10 answered as taught before" in (run / "logs/node-0.r0.log").read_text()


def test_the_base_is_an_internlm2_checkpoint_with_fused_wqkv(trained):
    from safetensors import safe_open

    with safe_open(trained / "outputs/base/model/model.safetensors", framework="pt") as weights:
        assert list(weights.get_slice("model.layers.0.attention.wqkv.weight").get_shape()) == [(8 + 2 * 2) * 32, 256]
    assert json.loads((trained / "outputs/base/model/config.json").read_text())["model_type"] == "internlm2"


def test_training_told_to_stop_saves_and_resumes_without_a_trace(copy, short):
    settings = [word for setting in SHORT for word in ("--set", setting)]
    whole = rows(short / "metrics.jsonl")
    handle = launch("submit", "job.yaml", *settings, cwd=copy, home=copy / "home").stdout.strip()
    metrics = copy / "outputs/quickstart/metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and len(rows_so_far(metrics)) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    launch("cancel", handle, cwd=copy, home=copy / "home")
    if len(rows_so_far(metrics)) < 6:
        assert json.loads(launch("status", handle, "--json", cwd=copy, home=copy / "home").stdout)["exit_code"] == 75
    again = local(copy, *SHORT)
    assert "resuming from" in again.stderr
    compared = ("step", "loss", "lr", "grad_norm")
    assert [[row[key] for key in compared] for row in rows(metrics)] == [
        [row[key] for key in compared] for row in whole
    ]


def rows_so_far(path):
    return path.read_text().split("\n")[:-1]


def test_two_processes_give_the_losses_of_one(copy, short):
    local(copy, *SHORT, "resources.nodes=2", "train.optimizer.batch_size=4")
    one, two = rows(short / "metrics.jsonl")[:2], rows(copy / "outputs/quickstart/metrics.jsonl")[:2]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=2e-3)
    assert [row["grad_norm"] for row in two] == pytest.approx([row["grad_norm"] for row in one], rel=0.02)


def test_without_deepspeed_one_process_trains_too(copy):
    local(copy, *SHORT, "train.optimizer.deepspeed=null")
    assert (copy / "outputs/quickstart/adapter/adapter_model.safetensors").exists()
    assert not list((copy / "outputs/quickstart").glob("checkpoint-*/zero"))


def test_a_mistake_the_launcher_cannot_see_ends_with_78_and_no_trace(copy):
    (copy / "nowhere").mkdir()
    done = local(copy, *SHORT, "train.model.path=./nowhere", check=False)
    assert done.returncode == 5
    assert "nowhere" in done.stderr
    assert "exit code 78" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("data", {"sources": [{"path": "nowhere.jsonl"}]}, "nowhere.jsonl"),
        ("model", {"chat_template": "internlm"}, "the tokenizer has no token <eoh>, <eoa>"),
        ("model", {"lora": {"targets": ["wqkv"]}}, "model.lora.targets: got wqkv"),
    ],
)
def test_mistakes_in_a_job_end_the_trainer_with_78_and_no_trace(trained, tmp_path, section, changes, words):
    train = yaml.safe_load((QUICKSTART / "job.yaml").read_text())["train"]
    train["settings"]["output_dir"] = str(tmp_path / "out")
    train["model"]["path"] = str(trained / "outputs/base/model")
    train["data"]["sources"][0]["path"] = str(QUICKSTART / "facts.jsonl")
    train[section] |= changes
    run = warm.start(tmp_path, train)
    assert run.codes() == [78], run.text
    assert words in run.text and "Traceback" not in run.text


def test_another_configuration_does_not_touch_an_output_folder_in_use(copy, short):
    output = shutil.copytree(short, copy / "outputs/quickstart")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    done = local(copy, *SHORT, "train.optimizer.lr=1.0e-3", check=False)
    assert done.returncode == 5
    assert "optimizer.lr: 0.002 -> 0.001" in done.stderr
    typed = f"launch local job.yaml {' '.join(f'--set {word}' for word in SHORT)} --set train.optimizer.lr=1.0e-3"
    typed = typed.replace("--set train.runtime.sample_prompts=[]", "--set 'train.runtime.sample_prompts=[]'")
    assert f"a new run in a folder of its own: {typed} --new" in done.stderr
    going_on = r"launch local job.yaml [^;\n]*--set train.optimizer.lr=0.002 --resume quickstart-"
    [goes_on] = re.findall(going_on, done.stderr)
    assert "1.0e-3" not in goes_on  # no field is set twice
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    changed = local(copy, *SHORT, "train.optimizer.lr=1.0e-3", words=["--new"])
    assert "chat with the result: launch chat quickstart-" in changed.stderr
    assert len(list((copy / "outputs").glob("quickstart-*/adapter"))) == 1


def test_launch_data_shows_rows_on_stdout_and_counts_on_stderr(copy):
    done = launch("data", "job.yaml", "--dump", "2", cwd=copy, home=copy / "home")
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(row) for row in shown] == [{"text", "input_ids", "labels"}] * 2
    assert "60 rows read" in done.stderr
