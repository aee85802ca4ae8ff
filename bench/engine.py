"""QLoRA step speed and memory on one GPU: ours, Unsloth and the PEFT recipe, one after the other on the same card.

    python bench/engine.py --peers gpu_qlora.py --model DIR --row 2048x1-ckpt --out row.json
    python bench/engine.py --merge *.json

`--peers` is a script with `run VARIANT DIR SEQ BATCH`, whose last line is JSON with tok_s and device_used_GB
(../shared/bench/gpu_qlora.py, which also makes DIR). Prints a table and, as its last line, a JSON list.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
UNSLOTH, RECIPE = "unsloth+nf4", "nf4+prep+drop+autocast"
# row -> tokens of a row, rows of a batch, our activation policy, the peers that run
ROWS: dict[str, tuple[int, int, str, tuple[str, ...]]] = {
    "2048x1-ckpt": (2048, 1, "offload", (UNSLOTH + "+ckpt", RECIPE + "+ckpt")),
    "2048x8-ckpt": (2048, 8, "offload", (UNSLOTH + "+ckpt", RECIPE + "+ckpt")),
    "2048x8": (2048, 8, "none", (UNSLOTH,)),
    "32768x1-ckpt": (32768, 1, "offload", (UNSLOTH + "+ckpt",)),
}
REAL_ROWS = [SHARED / "data/sft" / name for name in ("alpaca_en_demo.json", "alpaca_zh_demo.json")]
COLUMNS = ("ours_tok_s", "unsloth_tok_s", "recipe_tok_s", "ratio_unsloth", "ratio_recipe", "dropout_tok_s",
           "packed_tok_s", "fp8_tok_s", "fp8_packed_tok_s", "ours_gb", "fp8_gb", "unsloth_gb", "recipe_gb", "loss_gap",
           "fp8_loss_gap", "estimate_error")  # fmt: skip


def main() -> None:
    """Measure a row, or print a table of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="the peers' script")
    parser.add_argument("--model", type=Path, help="a checkpoint folder of the 7B shape")
    parser.add_argument("--row", choices=ROWS, help="a row of the table")
    parser.add_argument("--rows", type=Path, nargs="+", default=REAL_ROWS, help="files of real rows")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "data/tokenizers/internlm2")
    parser.add_argument("--loss-steps", type=int, default=300, help="steps of the loss test (0: none; default: 300)")
    parser.add_argument("--out", type=Path, help="where the row's JSON goes, too")
    parser.add_argument("--merge", type=Path, nargs="+", help="rows that were measured")
    options = parser.parse_args()
    if options.merge:
        found = [json.loads(path.read_text()) for path in options.merge]
    else:
        found = [measure(options)]
        if options.out:
            options.out.write_text(json.dumps(found[0]))
    table(found)
    print(json.dumps(found))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    seq, batch, policy, peers = ROWS[options.row]
    ours, float8 = (worker(options, kind, seq, batch, policy) for kind in ("speed", "fp8"))
    row = {"setting": options.row, "device": ours["device"], "precision": ours["precision"], "policy": policy,
           "ours_tok_s": ours["tok_s"], "packed_tok_s": ours["packed_tok_s"], "ours_gb": ours["gb"],
           "dropout_tok_s": worker(options, "dropout", seq, batch, policy)["tok_s"],
           "fp8_tok_s": float8["tok_s"], "fp8_gb": float8["gb"], "fp8_packed_tok_s": float8["packed_tok_s"],
           "estimate_gb": ours["estimate_gb"], "estimate_error": round(ours["estimate_gb"] / ours["gb"] - 1, 4),
           "unsloth_tok_s": None, "unsloth_gb": None, "recipe_tok_s": None, "recipe_gb": None}  # fmt: skip
    for variant in peers:
        name = "unsloth" if "unsloth" in variant else "recipe"
        found = run([sys.executable, options.peers, "run", variant, options.model, str(seq), str(batch)])
        row |= {f"{name}_tok_s": found.get("tok_s"), f"{name}_gb": found.get("device_used_GB")}
        if found.get("tok_s"):
            row[f"ratio_{name}"] = round(ours["tok_s"] / found["tok_s"], 3)
    if options.loss_steps:
        mean = {kind: worker(options, kind, 2048, 1, policy)["loss"] for kind in ("loss", "fp8_loss", "reference")}
        gaps = {name: round(mean[kind] / mean["reference"] - 1, 5)
                for name, kind in (("loss_gap", "loss"), ("fp8_loss_gap", "fp8_loss"))}  # fmt: skip
        row |= {**gaps, "losses": mean}
    return row


def worker(options: argparse.Namespace, kind: str, seq: int, batch: int, policy: str) -> dict[str, Any]:
    """One measurement of ours, in a process of its own."""
    job = {"kind": kind, "model": str(options.model), "rows": [str(path) for path in options.rows],
           "tokenizer": str(options.tokenizer), "seq": seq, "batch": batch, "policy": policy,
           "loss_steps": options.loss_steps}  # fmt: skip
    found = run([sys.executable, Path(__file__).with_name("engine_worker.py"), json.dumps(job)])
    if "tok_s" not in found and "loss" not in found:
        raise SystemExit(f"error: our {kind} run failed: {found['error']}")
    return found


def run(command: list[Any]) -> dict[str, Any]:
    """The JSON of a process's last line; {"error": ...} where there is none."""
    environ = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}
    if "run" in command:  # the peers' allocator as they would have it
        environ = dict(os.environ)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environ, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    print(lines[-1] if lines else f"failed: {done.stderr[-2000:]}", file=sys.stderr, flush=True)
    return json.loads(lines[-1]) if lines else {"error": done.stderr[-500:]}


def table(rows: list[dict[str, Any]]) -> None:
    """The rows, a line a column: there are more columns than rows."""
    print(f"{'':16}" + "".join(f"{row['setting']:>16}" for row in rows))
    for column in COLUMNS:
        cells = [row.get(column) for row in rows]
        print(f"{column:16}" + "".join(f"{'-' if cell is None else cell:>16}" for cell in cells))
    for row in rows:
        print(f"{row['setting']}: {row['device']}; {row['precision']}; gradient checkpointing {row['policy']}")


if __name__ == "__main__":
    main()
