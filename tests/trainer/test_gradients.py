"""The gradient of a step is that of the mean loss over all trained tokens of all its rows, however they are dealt to
ranks and micro-batches. Real training on the CPU: with beta1 = 0 Adam's first moment is the gradient itself, and it is
read from the checkpoint of every step."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.trainer import warm
from trainer.config.job import TrainConfig
from trainer.data.cache import DataCache
from trainer.data.store import ids_of, labels_of
from trainer.models.tokenizer import load_tokenizer
from trainer.parallel.zero_state import FOLDER, Pieces
from trainer.training.build import build_model

WORDS = ["Where", "does", "the", "river", "end", "and", "who", "lives", "there", "now", "in", "which", "year", "was",
         "it", "built"]  # fmt: skip
LAYOUTS = {"accumulated": (1, 4, 1), "two ranks": (2, 2, 1), "one batch": (1, 1, 4)}  # ranks, accumulation, batch size
CASES = [
    *((stage, layout, True) for stage in (None, 0, 1, 2, 3) for layout in ("accumulated", "two ranks")),
    *((stage, "one batch", True) for stage in (None, 2)),
    *((stage, layout, False) for stage in (None, 2) for layout in LAYOUTS),
]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    """Seventeen answers of one to forty words, in fewer rows when packed; neither number is a multiple of four."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lengths = [1, 40, 2, 1, 30, 3, 1, 20, 2, 1, 35, 4, 1, 38, 25, 36, 1]
    rows = [{"messages": [{"role": "user", "content": WORDS[number % 16]},
                          {"role": "assistant", "content": " ".join((WORDS * 3)[:length])}]}
            for number, length in enumerate(lengths)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def job(folder, base, path, *, stage, layout, pack):
    _, accumulation, batch_size = LAYOUTS[layout]
    return {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "gradient_checkpointing": False, "path": str(base), "quantization": "none",
                  "lora": None, "chat_template": "internlm2"},
        "data": {"sources": [{"path": str(path)}], "format": "messages", "max_length": 192, "pack": pack,
                 "cache_dir": str(path.parent / "cache")},
        "optimizer": {"lr": 1e-30, "epochs": 1.0, "batch_size": batch_size, "accumulation": accumulation,
                      "betas": [0.0, 0.9], "max_grad_norm": 0.0,
                      "deepspeed": None if stage is None else {"zero_stage": stage}},
        "runtime": {"log_every": 1, "save_every": 1, "keep": 9, "sample_prompts": [], "log_rows": True},
    }  # fmt: skip


def plain(checkpoint, names):
    """Without DeepSpeed: transformers' two groups, with and without weight decay, count on."""
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    ordered = [*(name for name in names if "norm" not in name), *(name for name in names if "norm" in name)]
    return {name: saved["state"][number]["exp_avg"].flatten() for number, name in enumerate(ordered)}


def by_name(checkpoint, names):
    with Pieces(checkpoint / FOLDER) as pieces:
        return {name: pieces.read("exp_avg", name, 0, count) for name, count in names.items()}


def zero3(checkpoint, names):
    """DeepSpeed's own files: of every parameter of a group each rank has one part, the last one filled up."""
    files = sorted(checkpoint.glob("global_step*/zero_pp_rank_*_optim_states.pt"))
    ranks = [torch.load(file, weights_only=False)["optimizer_state_dict"]["optimizer_state_dict"] for file in files]
    shapes = torch.load(next(checkpoint.glob("global_step*/zero_pp_rank_0_*model_states.pt")), weights_only=False)
    found = {}
    for number, group in enumerate(shapes["param_shapes"]):
        flats, place = [rank["state"][number]["exp_avg"] for rank in ranks], 0
        for name in group:
            size = -(-names[name] // len(ranks))
            found[name] = torch.cat([flat[place : place + size] for flat in flats])[: names[name]]
            place += size
    return found


def reference(model, step_rows):
    """The gradient of the mean over tokens, and of the mean over rows of their means."""
    samples = [sample for row in step_rows for sample in row.samples]
    losses = [token_losses(model, sample) for sample in samples]
    wanted = torch.cat(losses).mean()
    per_row = torch.stack([torch.cat([token_losses(model, one) for one in row.samples]).mean() for row in step_rows])
    return gradient(model, wanted), gradient(model, per_row.mean())


def token_losses(model, sample):
    ids = torch.tensor(ids_of(sample).astype("int64"))[None]
    labels = torch.tensor(labels_of(sample).astype("int64"))
    logits = model(input_ids=ids).logits[0, :-1]
    kept = labels[1:] != -100
    return cross_entropy(logits[kept], labels[1:][kept], reduction="none")


def gradient(model, loss):
    names = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, names.values()), strict=True))


def distance(found, wanted):
    """The largest relative distance of a parameter's gradient."""
    return max(float((found[name] - grad.flatten()).norm() / grad.norm()) for name, grad in wanted.items())


@pytest.mark.parametrize(("stage", "layout", "pack"), CASES)
def test_the_gradient_is_that_of_the_mean_over_all_tokens(tiny_base, conversations, tmp_path, stage, layout, pack):
    ranks = LAYOUTS[layout][0]
    raw = job(tmp_path, tiny_base, conversations, stage=stage, layout=layout, pack=pack)
    run = warm.start(tmp_path, raw, ranks)
    assert run.codes() == [0] * ranks, run.text
    config = TrainConfig.model_validate(raw)
    model = build_model(config, torch.device("cpu"))
    names = {name: parameter.numel() for name, parameter in model.named_parameters()}
    cache = DataCache(conversations.parent / "cache", print)
    rows = cache.rows(cache.samples(config, load_tokenizer(str(tiny_base))), config)["train"]
    read = {None: plain, 3: zero3}.get(stage, by_name)
    assert pack == any(len(row.samples) > 1 for row in rows)
    steps = run.rows()
    assert len(steps) * 4 > len(rows), "the last step has rows of the next epoch"
    for step, dealt in steps.items():
        step_rows = [rows[int(number)] for numbers in dealt.values() for number in numbers]
        assert len(step_rows) == 4
        wanted, mean_of_means = reference(model, step_rows)
        found = read(tmp_path / f"out/checkpoint-{step}", names)
        assert distance(found, wanted) < 1e-5
        assert distance(found, mean_of_means) > 1e-2, "rows with as many tokens each prove nothing"
