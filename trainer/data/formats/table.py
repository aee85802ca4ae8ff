"""Name of a format -> the function that reads its rows, and the columns that it reads. Pure."""

from collections.abc import Callable
from typing import NamedTuple

from trainer.data.formats.agents import read_moss, read_msagent
from trainer.data.formats.chat import read_completion, read_guanaco, read_messages, read_sharegpt
from trainer.data.formats.columns import read_alpaca, read_pair
from trainer.data.formats.documents import read_text, read_wanjuan, read_wanjuan_images
from trainer.data.formats.values import Row
from trainer.data.message import Conversation

Reader = Callable[[Row], Conversation]


class Format(NamedTuple):
    """How rows are read, the columns that they must have, and those that they may have. Nothing reads the others."""

    read: Reader
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All that it reads."""
        return self.needs + self.takes


SYSTEM = ("system",)
CHAT = (*SYSTEM, "tools", "functions", "images", "image")
TABLE = {
    "messages": Format(read_messages, ("messages",), CHAT),
    "sharegpt": Format(read_sharegpt, ("conversations",), CHAT),
    "guanaco": Format(read_guanaco, ("text",)),
    "alpaca": Format(read_alpaca, ("instruction", "output"), ("input", "history", *SYSTEM)),
    "alpaca_zh": Format(
        read_pair("instruction_zh", "input_zh", answer="output_zh"),
        ("instruction_zh", "output_zh"),
        ("input_zh", *SYSTEM),
    ),
    "moss": Format(read_moss, ("chat",), ("meta_instruction",)),
    "msagent": Format(read_msagent, ("conversations",)),
    "question_answer": Format(read_pair("question", answer="answer"), ("question", "answer"), SYSTEM),
    "prompt_completion": Format(read_completion, ("prompt", "completion"), CHAT),
    "user_assistant": Format(read_pair("user", answer="assistant"), ("user", "assistant"), SYSTEM),
    "dolly": Format(
        read_pair("instruction", "context", answer="response"), ("instruction", "response"), ("context", *SYSTEM)
    ),
    "openorca": Format(
        read_pair("question", answer="response", system="system_prompt"), ("system_prompt", "question", "response")
    ),
    "code_alpaca": Format(read_pair("prompt", answer="completion"), ("prompt", "completion"), SYSTEM),
    "tiny_codes": Format(read_pair("prompt", answer="response"), ("prompt", "response"), SYSTEM),
    "sql": Format(read_pair("context", "question", answer="answer"), ("context", "question", "answer"), SYSTEM),
    "medical": Format(
        read_pair("instruction", "input", answer="output"), ("instruction", "output"), ("input", *SYSTEM)
    ),
    "arxiv": Format(read_pair("abstract", answer="title"), ("abstract", "title"), SYSTEM),
    "colors": Format(read_pair("description", answer="color"), ("description", "color"), SYSTEM),
    "law_reference": Format(read_pair("question", answer="answer"), ("question", "answer"), SYSTEM),
    "crime_kg_assistant": Format(read_pair("input", answer="output"), ("input", "output"), SYSTEM),
    "stack_exchange": Format(read_pair("question", answer="response"), ("question", "response"), SYSTEM),
    "input_output": Format(read_pair("input", answer="output"), ("input", "output"), SYSTEM),
    "text": Format(read_text, ("text",)),
    "wanjuan": Format(read_wanjuan, ("content",)),
    "wanjuan_image_text": Format(read_wanjuan_images, ("content", "img_list")),
}
