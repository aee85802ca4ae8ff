"""The five sections of a training job, as XTuner has them: settings, model, data, optimizer, runtime.

Imports no torch: the launcher checks a job file against these models before it sends anything, and the
trainer checks the same file again when it starts. Defaults are XTuner's `internlm2_chat_7b_qlora_oasst1_e3`
unless the field's description says otherwise; docs/config.md is generated from the descriptions.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from trainer.config.sections import DeepSpeed as DeepSpeed
from trainer.config.sections import Lora as Lora
from trainer.config.sections import Optimizer as Optimizer
from trainer.config.sections import Section as Section
from trainer.config.sections import Shape as Shape

SCHEMA_VERSION = 1
MARKER = ".launch-run.json"  # in every output folder: launch has made it, and for which run

# name -> what a row of the format holds; the functions that read them are in trainer/data/formats
FORMATS = {
    "messages": "OpenAI chat: messages [{role, content, tool_calls?, loss?}], system?, tools? (or functions?)",
    "sharegpt": "conversations [{from, value, loss?}], system?, tools? (also WizardLM and LLaVA)",
    "guanaco": "text: `### Human: ...### Assistant: ...` (OpenAssistant)",
    "alpaca": "instruction, input?, output, history?, system?",
    "alpaca_zh": "instruction_zh, input_zh, output_zh",
    "moss": "MOSS SFT: meta_instruction, chat {turn_1: {Human, Inner Thoughts, Commands, Tool Responses, MOSS}}",
    "msagent": "MSAgent-Bench: conversations with startofthink/startofexec marks",
    "question_answer": "question, answer, system?",
    "prompt_completion": "prompt, completion: two texts, or TRL's two lists of messages; system?, tools?",
    "user_assistant": "user, assistant, system?",
    "dolly": "Dolly: instruction, context?, response, system?",
    "openorca": "system_prompt, question, response",
    "code_alpaca": "prompt, completion",
    "tiny_codes": "prompt, response",
    "sql": "context, question, answer",
    "medical": "instruction, input, output (the question may be in either)",
    "arxiv": "abstract, title",
    "colors": "description, color",
    "law_reference": "question, answer (a Chinese law question set)",
    "crime_kg_assistant": "input, output",
    "stack_exchange": "question, response",
    "input_output": "input, output, system?",
    "text": "text: a document for pre-training",
    "wanjuan": "content (and title, scores): a WanJuan 1.0 or WanJuan-CC document",
    "wanjuan_image_text": "content with Markdown images, img_list: a WanJuan 1.0 image-text document",
}
# names in XTuner that are others here
FORMAT_ALIASES = {"openai": "messages", "oasst1": "guanaco", "wizardlm": "sharegpt", "llava": "sharegpt",
                  "llava_image_only": "sharegpt", "pretrain": "text", "default": "input_output",
                  "msagent_react": "msagent", "crime_kg_assitant": "crime_kg_assistant"}  # fmt: skip
TemplateName = Literal[
    "internlm", "internlm2", "internlm3", "chatml", "llama2", "llama3", "mistral", "gemma", "qwen", "phi3", "zephyr",
    "chatglm3", "vicuna", "alpaca", "deepseek", "tokenizer",
]  # fmt: skip


class Settings(Section):
    """What holds for the whole run."""

    seed: int = Field(
        42,
        ge=0,
        lt=2**32,
        description="Seed of shuffling, initialisation and dropout. XTuner leaves it "
        "unset; a fixed one makes two runs comparable.",
    )
    output_dir: str | None = Field(
        None,
        min_length=1,
        description="Folder for checkpoints, adapter, metrics and samples of one run at a time: empty, or "
        "made by launch. Relative to the job's working directory. Default: outputs/RUN, a new one for every run.",
    )
    device: Literal["auto", "cpu"] = Field(
        "auto", description="`auto`: the GPUs when the job asks for any, else the CPU. `cpu`: never a GPU."
    )


class Model(Section):
    """Which model, how it is held in memory, and what of it is trained."""

    path: str | None = Field(
        None, min_length=1, description="Folder of a checkpoint, or a name on the Hugging Face hub."
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="Branch, tag or commit of a name on the hub; default: its main branch, as it is when the job runs.",
    )
    trust_remote_code: bool = Field(
        False,
        description="Run the Python code that comes with a model whose class is neither here nor in transformers. Only "
        "with a `revision` of 40 hexadecimal digits, so that it is the code you have read. InternLM needs none.",
    )
    init: Literal["internlm2"] | None = Field(
        None, description="Make a new model of this family, seeded by settings.seed, instead of reading one."
    )
    shape: Shape = Field(default_factory=Shape.model_construct, description="Size of the new model; with `init` only.")
    quantization: Literal["nf4", "int8", "none"] = Field(
        "nf4",
        description="`nf4`: linear layers in 4-bit NormalFloat with double quantisation (QLoRA, "
        "arXiv:2305.14314); the head and embeddings stay in bf16. `int8`: linear layers in 8 bits, their outliers in "
        "bf16 (LLM.int8, arXiv:2208.07339). `none`: bf16.",
    )
    lora: Lora | None = Field(
        default_factory=Lora.model_construct, description="Adapter to train; null trains every parameter."
    )
    chat_template: TemplateName | None = Field(
        None,
        description="Text format of a conversation; `tokenizer`: the Jinja template that comes with the tokenizer. "
        "Default: the one that belongs to the model, by its tokenizer's own template and its family (docs/models.md); "
        "the log and `launch data` say which, and why.",
    )
    dtype: Literal["bf16", "fp32"] = Field(
        "bf16",
        description="Precision of what is not quantised, and of the arithmetic. XTuner used fp16 with a loss "
        "scaler, which overflows; bf16 needs no scaler.",
    )
    compute: Literal["fp8"] | None = Field(
        None,
        description="`fp8`: products with frozen weights in FP8 (e4m3, a scale for each row), everything else as "
        "before; faster on GPUs that have it (H100, H200, L4 and newer), in layers that the trainer fuses. Default: "
        "in `dtype`.",
    )
    gradient_checkpointing: bool | Literal["auto", "none", "selective", "full", "offload"] = Field(
        "auto",
        description="What of the activations is computed again in the backward pass to save memory. `none` (or false): "
        "nothing; `selective`: the feed-forward half; `full` (or true): all but each layer's input; `offload`: inputs "
        "and attention outputs wait in the node's memory, copied while the GPU computes, and so does the embedding; "
        "`auto`: the first of these that fits into the GPU, by the estimate of `launch estimate`; on a CPU, none.",
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        problems = []
        if (self.path is None) == (self.init is None):
            given = "neither path nor init" if self.path is None else "both path and init"
            problems.append(f"got {given}, allowed: exactly one of the two")
        problems += _code_problems(self.path, self.revision, self.trust_remote_code)
        if self.lora is None and self.quantization != "none":
            bits = {"nf4": 4, "int8": 8}[self.quantization]
            problems.append(
                f"got quantization {self.quantization} with lora null, allowed: `quantization: none` for "
                f"full-parameter training, or a lora section ({bits}-bit weights cannot be trained)"
            )
        if self.lora is not None and self.lora.init == "pissa" and self.quantization != "none":
            problems.append(
                f"got quantization {self.quantization} with lora.init pissa, allowed: `quantization: none` (the base "
                "gives up a part of every weight, which a quantised one cannot)"
            )
        if self.init is not None and self.lora is not None:
            problems.append(
                "got init with a lora section, allowed: `lora: null` (an adapter on random weights "
                "learns nothing useful)"
            )
        if self.init is None and "shape" in self.model_fields_set:
            problems.append("got shape with path, allowed: shape with init only (a checkpoint has its own shape)")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _code_problems(path: str | None, revision: str | None, trust_remote_code: bool) -> list[str]:
    """What is wrong with `revision` and `trust_remote_code` of a model's section."""
    of_the_hub = path is not None and not path.startswith((".", "/", "~")) and path.count("/") <= 1
    if not of_the_hub:
        given = [f"revision {revision}"] if revision else []
        given += ["trust_remote_code true"] if trust_remote_code else []
        where = f"path {path}, a folder" if path is not None else "init"
        return [f"got {' and '.join(given)} with {where}, allowed: with a name on the hub only"] if given else []
    if trust_remote_code and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        return [
            f"got trust_remote_code true with revision {revision or 'not set'}, allowed: a commit's 40 hexadecimal "
            "digits (a branch or tag may hold other code tomorrow)"
        ]
    return []


def _known_format(name: str | None) -> str | None:
    """A format's name in this project, or `module:function`."""
    if name is None or name == "auto" or name in FORMATS:
        return name
    if name in FORMAT_ALIASES:
        return FORMAT_ALIASES[name]
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    raise ValueError(f"got {name!r}, allowed: auto, {', '.join(FORMATS)}, or module:function of your own")


FormatName = Annotated[str, AfterValidator(_known_format)]


class Source(Section):
    """One place that rows come from."""

    path: str = Field(
        min_length=1,
        description="File (json, jsonl, csv, parquet; .gz and .zst too), folder or glob of them, on this machine or "
        "behind an fsspec address (s3://, gs://, https://); or the name of a data set on the hub.",
    )
    format: FormatName | None = Field(None, description="How the rows are read; default: data.format.")
    split: str = Field("train", min_length=1, description="Split of a data set on the hub, slices allowed.")
    weight: float = Field(
        1.0, gt=0, le=1000, description="Samples taken from it, as a multiple of its own number of samples."
    )
    system: str | None = Field(
        None, min_length=1, description="System message for its conversations that have none. (XTuner's formats bring "
        "one each; a model is then trained with a text that no server sends.)",
    )  # fmt: skip
    columns: dict[str, str] = Field(
        default_factory=dict, description="Columns of the format under other names in the file: {format's: file's}."
    )
    min: dict[str, float] = Field(
        default_factory=dict, description="Leave out rows whose column is below this, such as {fluency_score: 0.5}."
    )
    max: dict[str, float] = Field(
        default_factory=dict, description="Leave out rows whose column is above this, such as {toxic_score: 0.5}."
    )


class Data(Section):
    """Rows to token ids: map, template, encode, pack."""

    sources: list[Source] = Field(min_length=1, description="Where the rows come from, mixed together.")
    format: FormatName = Field(
        "auto", description="The sources' default row format; `auto`: known by the columns of the first rows."
    )
    max_length: int = Field(
        2048, ge=8, le=2**21, description="Longest sequence in tokens; also the length of a packed row."
    )
    pack: bool = Field(
        True,
        description="Put whole samples together into rows of max_length tokens; samples never see "
        "each other, and none is cut in two (XTuner cut them).",
    )
    group_by_length: bool = Field(
        False, description="Without packing: rows of like length into one batch, so that little is padded."
    )
    overlong: Literal["keep_turns", "drop", "truncate", "error"] = Field(
        "keep_turns",
        description="A conversation longer than "
        "max_length: keep the leading turns that fit (never half an answer), drop it, cut it, or stop. "
        "XTuner cut it, answer and all.",
    )
    bad_rows: Literal["error", "skip"] = Field(
        "error",
        description="A row that cannot be read: stop and say where, or leave it out and keep it, with the reason, in "
        "output_dir/rejected.jsonl.",
    )
    validation: list[Source] | float | None = Field(
        None,
        description="What the loss is also measured on, at every runtime.eval_every: sources of its own, or the share "
        "of the samples that is kept apart from training.",
    )
    image_dir: str | None = Field(
        None,
        min_length=1,
        description="Folder that the paths of images in rows start from. Leading folders of a path that it does not "
        "have are left out. Default: the folder of the row's own file.",
    )
    cache_dir: str | None = Field(
        None,
        min_length=1,
        description="Where encoded data sets are kept, on a file system that all nodes see. Default: output_dir/data.",
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.pack and self.group_by_length:
            raise ValueError("got group_by_length with pack, allowed: one of the two (packed rows have one length)")
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError(f"got validation {self.validation}, allowed: a share between 0 and 1, or sources")
        return self


class SamplePrompt(Section):
    """A question asked before and after training."""

    prompt: str = Field(min_length=1, description="What the user says.")
    expect: str | None = Field(None, min_length=1, description="The answer as taught; counted in the score when given.")
    system: str | None = Field(None, min_length=1, description="System message in front.")

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, value: Any) -> Any:
        if not isinstance(value, str | dict):
            raise ValueError(f"got {value!r}, allowed: text, or prompt, expect and system")
        return {"prompt": value} if isinstance(value, str) else value


class Sampling(Section):
    """How answers are drawn."""

    temperature: float = Field(0.1, ge=0, le=10, description="0 always takes the likeliest token.")
    top_p: float = Field(0.75, gt=0, le=1, description="Draw from the likeliest tokens of this total probability.")
    top_k: int = Field(40, ge=1, description="Draw from this many likeliest tokens.")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=2**17,
        description="Longest answer in tokens. Default: 200 for runtime.sample_prompts, which training waits for, and "
        "600 in a chat (XTuner's for both).",
    )


TrackerName = Literal["azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte", "mlflow",
                      "neptune", "swanlab", "tensorboard", "trackio", "wandb"]  # fmt: skip


class Runtime(Section):
    """What happens besides training."""

    log_every: int = Field(10, ge=1, description="Steps between two log lines.")
    report_to: list[TrackerName] | None = Field(
        None,
        description="Where the same numbers go besides the log and metrics.jsonl, through transformers' reports, which "
        "read their own environment variables (WANDB_PROJECT, MLFLOW_TRACKING_URI, ...). Default: TensorBoard, in "
        "output_dir/tensorboard, if it is installed.",
    )
    save_every: int = Field(500, ge=1, description="Steps between two checkpoints.")
    keep: int = Field(2, ge=1, description="Checkpoints kept; older ones are removed once a newer one is complete.")
    eval_every: int = Field(500, ge=1, description="Steps between two rounds of sample answers.")
    sample_prompts: list[SamplePrompt] = Field(
        default_factory=list,
        description="Questions answered before training, every eval_every steps and after it, a few at a time, while "
        "training waits; plain text, or prompt, expect and system. (XTuner asks two about Shanghai unasked.)",
    )
    sampling: Sampling = Field(default_factory=Sampling.model_construct, description="How the answers are drawn.")
    max_bad_steps: int = Field(
        3,
        ge=1,
        description="Steps in a row whose loss or gradient is not a number until the run ends with exit code 70; "
        "such a step changes no weights and is not saved.",
    )
    log_rows: bool = Field(False, description="Print which rows every step trained on; `launch drill` turns it on.")
    resume: Literal["auto", "never"] = Field(
        "auto",
        description="`auto`: go on from the newest complete checkpoint in "
        "output_dir, if any. `never`: start over, in an output_dir in which nothing was trained.",
    )


class TrainConfig(Section):
    """The `train:` part of a job file."""

    settings: Settings = Field(default_factory=Settings.model_construct, description="What holds for the whole run.")
    model: Model = Field(description="Which model, how it is held in memory, what of it is trained.")
    data: Data = Field(description="Rows to token ids.")
    optimizer: Optimizer = Field(default_factory=Optimizer.model_construct, description="AdamW and its schedule.")
    runtime: Runtime = Field(default_factory=Runtime.model_construct, description="What happens besides training.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.model.init and self.data.max_length > self.model.shape.max_positions:
            raise ValueError(
                f"got data.max_length {self.data.max_length} with model.shape.max_positions "
                f"{self.model.shape.max_positions}, allowed: a max_length up to max_positions"
            )
        stage = self.optimizer.deepspeed.zero_stage if self.optimizer.deepspeed else 0
        problem = zero3_problem(self.model) if stage == 3 else None
        if problem:
            raise ValueError(problem)
        return self


def zero3_problem(model: Model) -> str | None:
    """What of a model cannot be split over the ranks, where each has a part of every weight."""
    if model.quantization == "int8":  # split int8 weights compute wrong values (bitsandbytes issue 1451)
        return "got model.quantization int8 with ZeRO-3, allowed: nf4 or none, or a zero_stage up to 2"
    if model.lora is not None and (model.lora.dora or model.lora.init == "pissa"):
        given = "dora" if model.lora.dora else "init pissa"
        return f"got model.lora.{given} with ZeRO-3, allowed: a zero_stage up to 2 (it needs whole weights)"
    return None


# PyYAML writes these line ends as they are, and reads them as blanks, unless the text is quoted and escaped.
UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")


def config_text(sections: dict[str, Any]) -> str:
    """A config as YAML for people that reads back as it was."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = '"' if UNICODE_BREAKS.search(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    written: str = yaml.dump(sections, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return written
