"""Fuzzed job files through `launch render`: each ends within a time limit with exit code 2 and a message, or with a
render that is valid (Kubernetes objects against the API's schemas, scripts by `bash -n`, on a sample).

Valid jobs are changed at two levels: as text (bytes, lines, duplicated keys, tabs, anchors, cut files, deep nesting)
and as values (anything at any place, also by --set). Most cases run inside two processes, some as real commands.
Prints the seed, a table and the first defects, and as its last line one JSON object. Ends with 1 on a defect.
"""

import argparse
import contextlib
import copy
import gc
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# Of the processor, and on the clock of a machine that has other work, too.
LIMIT_S, WAIT_S = 10, 60
PROCESSES = 2
CHUNK = 100
KUBERNETES = "1.36"
BACKENDS = ("kubernetes", "slurm", "local")

TRAIN = """\
name: tune
image: registry.example.com/team/trainer:0.1
resources: {nodes: 2, gpus_per_node: 8, cpus_per_node: 64, memory_per_node: 512Gi, time_limit: 12h}
mounts:
  - {path: /data, host_path: /mnt/data, read_only: true}
secrets: [WANDB_KEY]
env: {NCCL_DEBUG: INFO, GREETING: "it's $HOME"}
restarts: 3
train:
  model: {path: internlm/internlm2-chat-7b, lora: {r: 16, alpha: 32}}
  data:
    sources:
      - {path: rows.jsonl}
    max_length: 2048
  optimizer: {lr: 2e-4, epochs: 1.5}
"""
RUN = """\
name: hello
run:
  - bash
  - -c
  - |
    echo "one"
    echo 'two' $HOME
resources: &r
  nodes: 1
env:
  A: "yes"
  B: 上海
"""
CODE = "name: shipped\ncode: src\nrun: [python, -m, thing]\nmounts: [{path: /out, host_path: /mnt/out}]\n"
JOBS = (TRAIN, RUN, CODE)

WORDS = [
    "\t", "  ", "\n", "\r\n", ": ", "- ", "? ", "#", "&a ", "*a", "*r", "<<: *r\n", "!!binary ", "!!python/object:x ",
    "!x ", "|\n", ">-\n", "{", "}", "[", "]", "'", '"', "%YAML 1.1\n", "---\n", "...\n", "null", "~", "true",
    ".nan", ".inf", "0o17", "0x1F", "1e999", "-1", "9" * 400, "1_000", "2020-13-45", "12:30:00", "\0", "\ufeff", "\x85",
    "\u2028", "\x1b[31m", "💥", "\u202e", "é", "a" * 5000, "$(date)", "`id`", "; rm -rf x", "${X}", "LAUNCH_END",
    "'\"'", "\\", "../../etc", "/", "hf_" + "a1" * 17, "https://u:p@h/x",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", " ", "0", "a",
    "A b", "no", "\n", "a\nb", "\0", "\x7f", "💥", "x" * 70_000, "$(id)", "'", '"', "a'b\"c", "/", "/a:b", "a,b", "-",
    "--x", "1d", "1e3", "512Gi", "0Gi", "-5h", [], {}, [[]], [None], {"a": 1}, {1: 2}, {"": ""}, ["x"] * 300,
    {"<<": {"a": 1}},
    "=", "LAUNCH_END", "!x", "*a", "&a", "%", "@", "hf_" + "b2" * 17,
]  # fmt: skip


class TooLongError(BaseException):
    """A case did not end; no `except Exception` keeps it."""


@dataclass(frozen=True)
class Case:
    """One job file and its command line, the same for the same seed and number."""

    number: int
    content: bytes
    arguments: tuple[str, ...]
    backend: str


def main() -> int:
    """Run all cases, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="job files (default: 10000)")
    parser.add_argument("--commands", type=int, default=60, help="of them through the real command (default: 60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: drawn")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    started = time.monotonic()
    counts: Counter[str] = Counter()
    defects: list[str] = []
    for result, found in outcomes(options.seed, options.cases, options.commands):
        counts += result
        defects += found
    report(counts, defects, options.seed, time.monotonic() - started)
    return 1 if defects else 0


def outcomes(seed: int, cases: int, commands: int) -> Any:
    """Counts and defects of one chunk after another."""
    chunks = [(seed, start, min(start + CHUNK, cases)) for start in range(0, cases, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES, maxtasksperchild=20) as pool:
        yield from pool.imap_unordered(run_chunk, chunks)
    step = max(1, cases // commands) if commands else cases + 1
    with tempfile.TemporaryDirectory() as folder:
        enter(Path(folder))
        for number in range(0, cases, step):
            yield run_command(make_case(seed, number))


def report(counts: Counter[str], defects: list[str], seed: int, seconds: float) -> None:
    """A table for people, and one JSON line."""
    for name, count in sorted(counts.items()):
        print(f"{name:24} {count:8}")
    print(f"{'seconds':24} {seconds:8.0f}")
    for text in defects[:20]:
        print(f"-- {text}")
    print(json.dumps({"fuzz_tracebacks": len(defects), "fuzz_cases": counts["cases"], "fuzz_refused": counts["refused"],
                      "fuzz_rendered": counts["rendered"], "fuzz_checked": counts["checked render"],
                      "fuzz_seed": seed}))


def make_case(seed: int, number: int) -> Case:
    """The job file and arguments of a number."""
    draw = random.Random(f"{seed}:{number}")
    text = draw.choice(JOBS)
    if draw.random() < 0.5:
        content = changed_text(text, draw)
    else:
        values = yaml.safe_load(text)
        for _ in range(draw.choice([1, 1, 2])):
            change_value(values, draw)
        content = yaml.safe_dump(values, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    arguments = [f"--set={draw.choice(PLACES)}={draw.choice(WORDS)}" for _ in range(draw.choice([0, 0, 0, 0, 1]))]
    return Case(number, content, tuple(word.replace("\0", "") for word in arguments), draw.choice(BACKENDS))


PLACES = ("name", "env.A", "resources.nodes", "run.0", "run", "mounts.0.path", "train.data", "train.optimizer.lr", "x",
          "", "env", "secrets", "resources", "image", "run.-1", "restarts", "train.model.path")


def changed_text(text: str, draw: random.Random) -> bytes:
    """A few changes of the text, and now and then of its bytes."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        text = draw.choice(TEXT_CHANGES)(text, draw)
    content = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.1:
        at = draw.randrange(len(content) + 1)
        content = content[:at] + draw.randbytes(draw.randint(1, 8)) + content[at:]
    return content.replace(b"\n", b"\r\n") if draw.random() < 0.05 else content


def _insert(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + draw.choice(WORDS) + text[at:]


def _delete(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return text[:at] + text[at + draw.randint(1, 20):]


def _cut(text: str, draw: random.Random) -> str:
    return text[:draw.randrange(len(text) + 1)]


def _repeat_line(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    at = draw.randrange(len(lines))
    return "".join([*lines[:at], *[lines[at]] * draw.choice([2, 2, 50]), *lines[at:]])


def _swap_lines(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    draw.shuffle(lines)
    return "".join(lines)


def _replace_value(text: str, draw: random.Random) -> str:
    before, colon, after = text.rpartition(": ") if draw.random() < 0.5 else text.partition(": ")
    return before + colon + draw.choice(WORDS) + after


def _deep(text: str, draw: random.Random) -> str:
    depth = draw.choice([10, 100, 1000])
    form = draw.choice(["[", "{a: ", "- ", "? "])
    return text + "env: " * draw.randint(0, 1) + form * depth + draw.choice(["", "x", "]" * depth, "}" * depth])


def _laughs(text: str, draw: random.Random) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, draw.randint(2, 12))]
    return text + "\n".join(lines) + draw.choice(["", "\nenv: *a1\n", "\nrun: *a1\n"])


def _itself(text: str, draw: random.Random) -> str:
    knots = ["env: &e {A: *e}\n", "run: &e [*e]\n", "mounts: &e [*e, *e]\n", "train: &e {data: *e}\n"]
    return text + draw.choice(knots)


TEXT_CHANGES = [_insert, _insert, _insert, _insert, _delete, _delete, _cut, _repeat_line, _swap_lines, _replace_value,
                _replace_value, _deep, _laughs, _itself]


def change_value(values: Any, draw: random.Random) -> None:
    """Put something else, or something more, at a random place."""
    place: Any = values
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys or draw.random() < 0.1:
            key: Any = draw.choice(["nmae", "env", "run", "train", "", "x", 1, None])
            if isinstance(place, dict):
                place[key] = copy.deepcopy(draw.choice(VALUES))
            else:
                place.append(copy.deepcopy(draw.choice(VALUES)))
            return
        key = draw.choice(keys)
        if not isinstance(place[key], dict | list) or draw.random() < 0.3:
            if draw.random() < 0.2:
                del place[key]
            else:
                place[key] = copy.deepcopy(draw.choice(VALUES))
            return
        place = place[key]


def enter(folder: Path) -> None:
    """Make this the working folder of a launch of its own."""
    os.environ |= {"LAUNCH_HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "config"), "NO_COLOR": "1",
                   "KUBECONFIG": str(folder / "none")}
    (folder / "src").mkdir()
    (folder / "src/thing.py").write_text("print(1)\n")
    os.chdir(folder)


def run_chunk(chunk: tuple[int, int, int]) -> tuple[Counter[str], list[str]]:
    """The cases of a range, in this process."""
    seed, start, end = chunk
    counts: Counter[str] = Counter()
    defects = []
    with tempfile.TemporaryDirectory() as folder:
        enter(Path(folder))
        for number in range(start, end):
            counts["cases"] += 1
            case = make_case(seed, number)
            for kind, text in judged(case, *run_inside(case)):
                counts[kind] += 1
                if text:
                    defects.append(f"case {number}, {case.backend}: {kind}: {text}")
        os.chdir("/")
    gc.unfreeze()  # each command ends with a freeze
    gc.collect()
    return counts, defects


def command_line(case: Case) -> list[str]:
    """After the job was written."""
    Path("job.yaml").write_bytes(case.content)
    return ["render", "job.yaml", "--backend", case.backend, *case.arguments]


def run_inside(case: Case) -> tuple[int | None, str, str]:
    """Exit code (None: it did not end), stdout and stderr of the command, called as a function."""
    from launcher.cli import main as launch

    arguments = command_line(case)
    out, err = io.StringIO(), io.StringIO()
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    signal.alarm(WAIT_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            launch(arguments)
    except SystemExit as ended:
        return int(ended.code or 0), out.getvalue(), err.getvalue()
    except TooLongError:
        return None, out.getvalue(), err.getvalue()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    raise AssertionError("launch always exits")


def _too_long(number: int, frame: object) -> None:
    raise TooLongError


def run_command(case: Case) -> tuple[Counter[str], list[str]]:
    """The same through the real command."""
    argv = [sys.executable, "-m", "launcher.cli", *command_line(case)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    counts = Counter({"real commands": 1})
    defects = []
    try:
        done = subprocess.run(argv, capture_output=True, timeout=WAIT_S, env=env, check=False)
        outcome = judged(case, done.returncode, done.stdout.decode(), done.stderr.decode())
    except subprocess.TimeoutExpired:
        outcome = judged(case, None, "", "")
    for kind, text in outcome:
        if text:
            counts[kind] += 1
            defects.append(f"case {case.number}, {case.backend}, real command: {kind}: {text}")
    return counts, defects


def judged(case: Case, code: int | None, out: str, err: str) -> list[tuple[str, str]]:
    """What a case counts as, and for a defect a text."""
    if code is None:
        return [("hang", f"not ended after {LIMIT_S} s")]
    if "Traceback" in err or "a defect in launch" in err:
        return [("traceback", err.strip()[:500])]
    if code == 2:
        lines = err.splitlines()
        good = lines and not out and all(line.startswith(("error: ", "hint:  ", "  ")) for line in lines)
        return [("refused", "")] if good else [("bad message", repr((out[-200:], err[-500:])))]
    if code != 0:
        return [("bad exit", f"exit code {code}: {err[-500:]}")]
    if case.number % 2:
        return [("rendered", "")]
    why = invalid_k8s(out) if case.backend == "kubernetes" else invalid_bash(out)
    return [("rendered", ""), ("checked render", "")] if not why else [("invalid render", why)]


def invalid_k8s(text: str) -> str:
    """What the API's schemas say against it."""
    import kubernetes_validate

    try:
        for body in yaml.safe_load_all(text):
            kubernetes_validate.validate(body, KUBERNETES, strict=True)
    except (yaml.YAMLError, kubernetes_validate.ValidationError) as error:
        return str(error)[:500]
    return ""


def invalid_bash(text: str) -> str:
    """What bash says against it, without running it."""
    return subprocess.run(["bash", "-n"], input=text.encode("utf-8", "surrogateescape"), capture_output=True,
                          check=False).stderr.decode()[:500]


if __name__ == "__main__":
    sys.exit(main())
