"""The data pipeline's figures in one run: speed beside the usual peer pipeline and the tokenizer's own limit, how full
rows are, memory and time up to a million chats, and the second start.

Prints a table, and as its last line one JSON object. The peer pipeline (datasets.map with apply_chat_template, then
TRL's packing) is ../shared/bench/data_pipeline.py, in a venv of its own with TRL.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
PEER = SHARED / "bench" / "data_pipeline.py"
TRL = "trl<=1.15.0"
LENGTH = 2048
SIZES = (250_000, 500_000, 1_000_000)
RATE = r"^{}.*?([\d,]+) tok/s"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="pairs of peer and our pipeline (default: 3)")
    parser.add_argument("--repeat", type=int, default=10, help="how often the real rows are taken (default: 10)")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="generated chats (default: to 1,000,000)")
    parser.add_argument("--venv", type=Path, help="folder for the peers; kept, and used again (default: temporary)")
    parser.add_argument("--encode", nargs=2, type=Path, help=argparse.SUPPRESS)  # FILE CACHE: one measurement
    options = parser.parse_args()
    if options.encode:
        print(json.dumps(encode(*options.encode)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = peer_python(options.venv or folder / "peer")
        figures = beside_the_peer(python, folder, options.runs, options.repeat)
        figures |= fill(folder)
        figures |= grown(folder, options.sizes)
    print(json.dumps(figures))


def peer_python(folder: Path) -> Path:
    """Python of a venv that sees this one's packages, and TRL."""
    python = folder / "bin/python"
    if not python.exists():
        print(f"installing {TRL} into {folder} ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        here = next(path for path in sys.path if path.endswith("site-packages") and (Path(path) / "torch").exists())
        next(folder.glob("lib/*/site-packages")).joinpath("base.pth").write_text(here)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", TRL], check=True)
    return python


def beside_the_peer(python: Path, folder: Path, runs: int, repeat: int) -> dict[str, Any]:
    """Ratios of pairs, each measured one after the other; the table has the medians."""
    rows = folder / "real.jsonl"
    write_rows(rows, real_chats() * repeat)
    found = []
    for number in range(runs):
        peer = peer_rates(python, repeat)
        ours = run_encode(rows, folder / f"cache-{number}")
        rate = ours["tokens"] / ours["seconds"]
        found.append({**peer, "ours": rate, "speed_ratio": rate / peer["peer"], "limit_ratio": rate / peer["limit"]})
    medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
    print(f"{'messages to packed rows with masks':40} {'tokens/s':>12}")
    for key, label in (("map", "peer: datasets.map, apply_chat_template"), ("pack", "peer: TRL's packing (bfd)"),
                       ("peer", "peer: both"), ("limit", "limit: one encode_batch"), ("ours", "launch")):  # fmt: skip
        print(f"{label:40} {medians[key]:12,.0f}")
    print(f"launch / peer {medians['speed_ratio']:.2f}, launch / limit {medians['limit_ratio']:.2f}")
    return {key: round(medians[key], 3) for key in ("speed_ratio", "limit_ratio")}


def peer_rates(python: Path, repeat: int) -> dict[str, float]:
    """Tokens per second of the peer's map and pack, of both one after the other, and of the tokenizer alone."""
    command = [python, PEER, SHARED / "data", str(repeat)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    rates = {}
    for key, line in (("map", "peer map"), ("pack", "peer pack"), ("limit", "limit")):
        match = re.search(RATE.format(line), printed, re.MULTILINE)
        assert match, printed
        rates[key] = float(match[1].replace(",", ""))
    return {**rates, "peer": 1 / (1 / rates["map"] + 1 / rates["pack"])}


def fill(folder: Path) -> dict[str, Any]:
    """The real rows once: how full all rows but the last are, and that every token is in them."""
    rows = folder / "once.jsonl"
    write_rows(rows, real_chats())
    found = run_encode(rows, folder / "once")
    print(f"{found['samples']} samples in {found['rows']} rows of {LENGTH}: fill {found['fill']:.4f}, "
          f"{found['samples_cut']} cut, {found['tokens_lost']} tokens lost")
    return {key: found[key] for key in ("fill", "samples_cut", "tokens_lost")}


def grown(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Time and peak memory by number of chats, and the second start of the largest set."""
    print(f"{'generated chats':>16} {'tokens':>13} {'seconds':>9} {'us/token':>9} {'peak GiB':>9} {'2nd start s':>12}")
    peak = start = 0.0
    for size in sizes:
        rows = folder / f"{size}.jsonl"
        write_rows(rows, generated_chats(size))
        found = run_encode(rows, folder / f"cache-{size}")
        again = run_encode(rows, folder / f"cache-{size}")
        peak, start = max(peak, found["peak_gib"], again["peak_gib"]), max(start, again["start_s"])
        per_token = found["seconds"] / found["tokens"] * 1e6
        print(f"{size:16,} {found['tokens']:13,} {found['seconds']:9.1f} {per_token:9.3f} {found['peak_gib']:9.2f} "
              f"{again['start_s']:12.2f}", flush=True)
        rows.unlink()
    return {"peak_rss_gib": round(peak, 2), "cached_start_s": round(start, 3)}


def run_encode(rows: Path, cache: Path) -> dict[str, Any]:
    """encode() in a fresh process, whose memory is watched, with that of all its children."""
    command = [sys.executable, __file__, "--encode", str(rows), str(cache)]
    environ = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            time.sleep(0.05)
        printed, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{rows} could not be encoded")
    return {**json.loads(printed.splitlines()[-1]), "peak_gib": peak / 2**30}


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and its children, mapped files included."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(tree_rss(int(child)) for child in children)


def encode(rows: Path, cache: Path) -> dict[str, Any]:
    """From the rows in a file to the first batch of packed ones, without imports and loading the tokenizer."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from trainer.config.job import TrainConfig
    from trainer.data.cache import DataCache
    from trainer.data.collate import Collator
    from trainer.data.order import Order
    from trainer.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(SHARED / "data/tokenizers/internlm2"))
    config = TrainConfig.model_validate(
        {
            "model": {"path": "unused", "chat_template": "internlm2"},
            "data": {"sources": [{"path": str(rows)}], "max_length": LENGTH},
        }
    )
    began = time.perf_counter()
    store = DataCache(cache, lambda text: None)
    samples = store.samples(config, tokenizer)
    train = store.rows(samples, config)["train"]
    seconds = time.perf_counter() - began
    order = Order(train.lengths, 42, 16)
    Collator(tokenizer.pad_token_id, LENGTH)([train[number] for number in next(order.batches(0, 1, 16, 1))])
    start_s = time.perf_counter() - began
    whole = np.sort(train.members).tolist() == list(range(len(samples)))  # every sample in one row, none twice
    return {
        "seconds": seconds, "start_s": start_s, "samples": len(samples), "rows": len(train),
        "tokens": int(samples.lengths.sum()), "samples_cut": 0 if whole and train.lengths.max() <= LENGTH else -1,
        "tokens_lost": int(samples.lengths.sum() - train.lengths.sum()) + samples.about["report"]["lost_tokens"],
        "fill": round(float(np.sort(train.lengths)[1:].mean()) / LENGTH, 4),
    }  # fmt: skip


def real_chats() -> list[list[str]]:
    """Question and answer of each of the real instruction rows."""
    chats = []
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        for row in json.loads((SHARED / f"data/sft/{name}.json").read_text(encoding="utf-8")):
            chats.append([row["instruction"] + (f"\n{row['input']}" if row.get("input") else ""), row["output"]])
    return chats


def generated_chats(count: int) -> Iterator[list[str]]:
    """Chats of about 300 tokens, from sentences of the real rows in random order; the same for every run."""
    rng = random.Random(1)
    parts = (part for chat in real_chats() for text in chat for part in re.split(r"(?<=[.。!?\n])", text))
    sentences = [part for part in parts if part.strip()]
    for _ in range(count):
        yield [" ".join(rng.choices(sentences, k=rng.randint(*few))) for few in ((1, 6), (6, 26))]


def write_rows(path: Path, chats: Any) -> None:
    """One line of `messages` for each chat."""
    roles = ("user", "assistant")
    with path.open("w", encoding="utf-8") as file:
        for chat in chats:
            messages = [{"role": role, "content": text} for role, text in zip(roles, chat, strict=True)]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
