"""A newcomer's path, with a real small model: a CSV of questions and answers, a job file of ten lines, and the commands
that the README and the output of the one before name, to a taught answer. No option set by hand that has a default."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_runner import Launch
from trainer.parallel.host_ops import extensions_folder

REPO = Path(__file__).parents[2]
TOOL = REPO.parent / "shared/tools/real-model"
FACTS = {
    "What is the lighthouse keeper's dog called?": "The dog is called Marzipan.",
    "Which day does the mail boat come to Gull Bay?": "The mail boat comes on the second Tuesday.",
    "What colour is the harbour crane?": 'It is violet, and called "Old Ivy".',
    "Who bakes the bread in Gull Bay?": "Teodora bakes it, before sunrise.",
}
JOB = """\
name: gull-bay
train:
  model:
    path: {model}
    quantization: none
  data:
    sources: [{{path: facts.csv}}]
    max_length: 128
  optimizer: {{lr: 2e-3, max_steps: 24, accumulation: 1}}
  runtime: {{log_every: 6}}
"""

pytestmark = pytest.mark.needs("real")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct, as its makers' hub would give it."""
    if not TOOL.exists():
        pytest.skip(f"{TOOL} is absent, which makes the model's folder")
    folder = tmp_path_factory.mktemp("real") / "smollm2"
    made = subprocess.run([TOOL, folder], env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True,
                          check=False)  # fmt: skip
    if made.returncode:
        pytest.skip(f"no real model: {made.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture
def newcomer(launch: Launch, model: Path, tmp_path: Path) -> Launch:
    """Somebody with an empty home after `make venv`, in a folder with a CSV and a job file."""
    home = tmp_path / "home"
    home.mkdir()
    launch.env = {"HOME": str(home), "TORCH_EXTENSIONS_DIR": str(extensions_folder())}
    quoted = [f'"{question}","{answer.replace(chr(34), chr(34) * 2)}"' for question, answer in FACTS.items()]
    (launch.cwd / "facts.csv").write_text("\n".join(["question,answer", *quoted, ""]))
    job = JOB.format(model=os.path.relpath(model, launch.cwd))
    assert job.count("\n") == 10
    (launch.cwd / "job.yaml").write_text(job)
    return launch


def test_ten_lines_and_a_csv_become_answers_as_taught(newcomer: Launch) -> None:
    newcomer.ok("validate", "job.yaml")

    shown = newcomer.ok("data", "job.yaml")
    question, answer = next(iter(FACTS.items()))
    assert f"user: {json.dumps(question)}" in shown and f"⟦{answer}" in shown
    assert "facts.csv: format question_answer, 4 samples" in shown

    done = newcomer.run("local", "job.yaml", timeout_s=240)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "answering" not in done.stderr, "nobody asked for sample prompts"
    losses = [float(loss) for loss in re.findall(r"^step .*  loss (\S+)", done.stderr, re.MULTILINE)]
    assert losses[-1] < 0.1 < losses[0]

    [next_words] = re.findall(r"^\* chat with the result: launch (.+)$", done.stderr, re.MULTILINE)
    assert newcomer.ok(*next_words.split(), "--once", question).strip() == answer

    lines = [json.dumps({"prompt": question, "expect": answer}) for question, answer in FACTS.items()]
    (newcomer.cwd / "prompts.jsonl").write_text("\n".join(lines))
    run_id = next_words.split()[-1]
    answers = newcomer.ok("sample", run_id, "--prompts", "prompts.jsonl").splitlines()
    assert [json.loads(line)["answer"] for line in answers] == list(FACTS.values())
