"""Does a merged model answer as its base with the adapter does? Logits of both on rows of the run, one model in memory
after the other."""

import os
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainer.checkpoints.results import Trained
from trainer.config.job import TrainConfig
from trainer.data.bad_rows import BadRows
from trainer.data.conversations import read_conversations
from trainer.data.encode import Encoder
from trainer.data.message import Message, RowError
from trainer.data.report import Report
from trainer.data.segment import Segment
from trainer.data.templates import find_template
from trainer.errors import TrainError
from trainer.models.load import load_model
from trainer.models.tokenizer import load_tokenizer
from trainer.node.host_memory import free_bytes
from trainer.vision.files import ImageFiles
from trainer.vision.form import find_form
from trainer.vision.prompt import prompt_inputs
from trainer.vision.splice import place_images

ROWS, ROW_TOKENS = 8, 128
IMAGE_ROWS = 2  # of these; an image may be a thousand tokens
LOOKED_AT = 1000  # rows, in search of those
QUESTION = "Hello"  # for a run without data here and without sample prompts
# Rounding a merged weight to bf16 moves a logit by about a hundredth of the logits' spread, other weights by more
ALLOWED = 0.1


class Row(NamedTuple):
    """What is compared, with its images."""

    segments: list[Segment]
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Drift:
    """Differences of logits. `spread`: their standard deviation; `agreement`: the share of positions where both models
    have the same first choice."""

    rows: str
    tokens: int
    arithmetic: str
    max_abs: float
    mean_abs: float
    spread: float
    agreement: float

    def line(self) -> str:
        """For people."""
        return (
            f"drift on {self.rows} ({self.tokens} tokens, {self.arithmetic}): logits differ by {self.max_abs:.2g} at "
            f"most and {self.mean_abs:.2g} on average (their spread is {self.spread:.2g}), "
            f"{self.agreement:.1%} have the same first choice"
        )


def check_drift(trained: Trained, folder: Path, base: Path) -> Drift:
    """Compare the checkpoint in `folder` with `base` and its adapter. Raises TrainError when they differ by more than
    rounding does."""
    drift = measure_drift(trained, folder, base)
    if not drift.mean_abs <= ALLOWED * drift.spread:
        raise TrainError(
            f"the merged model is not the trained one: {drift.line()}",
            "nothing was written: the base has changed since the training, or this is a defect of launch",
        )
    return drift


def measure_drift(trained: Trained, folder: Path, base: Path) -> Drift:
    """The differences, on the GPU when there is one; in float32 where it fits, else in bf16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = _dtype(base, device)
    tokenizer = load_tokenizer(str(base))
    template = find_template(trained.config.model.chat_template, tokenizer)
    encoder = Encoder(tokenizer, template, find_form(str(base), tokenizer))
    rows, source = find_rows(trained, encoder)
    expected = _logits(lambda: _reference(trained, base, dtype, device), encoder, rows)
    found = _logits(lambda: _load(trained.config, str(folder), dtype, device), encoder, rows)
    difference = (found - expected).abs()
    return Drift(
        source,
        len(expected),
        f"{'float32' if dtype == 'fp32' else 'bf16'} on {device.type}",
        float(difference.max()),
        float(difference.mean()),
        float(expected.std()),
        float((found.argmax(-1) == expected.argmax(-1)).double().mean()),
    )


def find_rows(trained: Trained, encoder: Encoder) -> tuple[list[Row], str]:
    """Rows, and where they are from: the run's data, else its sample prompts."""
    try:
        with chdir(trained.job_dir):
            rows = list(islice(_few_images(_rendered(trained.config, encoder)), ROWS))
    except (TrainError, OSError):
        rows = []
    if rows:
        seeing = sum(bool(row.images) for row in rows)
        told = f", {seeing} of them with images" if seeing else ""
        return rows, f"{len(rows)} rows of the run's data{told}"
    prompts = [prompt.prompt for prompt in trained.config.runtime.sample_prompts] or [QUESTION]
    asked = [encoder.template.prompt([Message("user", prompt)]) for prompt in prompts[:ROWS]]
    return [Row(segments) for segments in asked], "sample prompts (the run's data cannot be read here)"


def _few_images(rows: Iterator[Row]) -> Iterator[Row]:
    seen = 0
    for row in rows:
        seen += bool(row.images)
        if not row.images or seen <= IMAGE_ROWS:
            yield row


def _rendered(config: TrainConfig, encoder: Encoder) -> Iterator[Row]:
    report, files = Report(), ImageFiles(config.data.image_dir)
    bad = BadRows(report, Path(os.devnull), skip=True)
    for mapped in islice(read_conversations(config, report, bad), LOOKED_AT):
        conversation = mapped.conversation
        first, images = conversation.messages[0], conversation.images
        with suppress(RowError, ValueError):  # what training has left out, or an image that is not here
            names = [files.find(image, mapped.read.place.file) for image in images if encoder.form]
            paths = tuple(files.path(name).absolute() for name in names)
            is_text = first.role == "text"
            segments = encoder.document(first.content) if is_text else encoder.template.render_row(conversation)
            place_images(segments, len(paths))
            if all(path.is_file() for path in paths):
                yield Row(segments, paths)


def _reference(trained: Trained, base: Path, dtype: str, device: torch.device) -> Any:
    model = _load(trained.config, str(base), dtype, device)
    if trained.adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, trained.adapter)


def _load(config: TrainConfig, path: str, dtype: str, device: torch.device) -> Any:
    changed = {"path": path, "init": None, "revision": None, "quantization": "none", "dtype": dtype}
    return load_model(config.model_copy(update={"model": config.model.model_copy(update=changed)}), device)


def _logits(load: Callable[[], Any], encoder: Encoder, rows: list[Row]) -> torch.Tensor:
    """[tokens of all rows, vocabulary], float32, on the host; the model is gone afterwards."""
    model = load().eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        found = [_row_logits(model, encoder, row) for row in rows]
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.new_empty(0)  # models are cycles, which would be collected when they like
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return torch.cat(found)


def _row_logits(model: Any, encoder: Encoder, row: Row) -> torch.Tensor:
    """Those of the first tokens of a text, or of the last ones behind images."""
    inputs = prompt_inputs(model, encoder, row.segments, row.images)
    if not row.images:
        inputs = {name: values[:, :ROW_TOKENS] for name, values in inputs.items()}
    logits: torch.Tensor = model(**inputs).logits[0, -ROW_TOKENS:]
    return logits.float().cpu()


def _dtype(base: Path, device: torch.device) -> str:
    weights = sum(file.stat().st_size for file in [*base.glob("*.safetensors")] or [*base.glob("pytorch_model*.bin")])
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else free_bytes()
    return "fp32" if 3 * weights < free else "bf16"
