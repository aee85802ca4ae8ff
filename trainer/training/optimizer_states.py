"""How AdamW holds its two moments: torch's in float32, bitsandbytes' in 8 bits or in pages."""

from typing import Any

from bitsandbytes.optim import AdamW

from trainer.errors import ConfigError
from trainer.node.ranks import Place

NAMES = {"8bit": "adamw_8bit", "paged": "paged_adamw_32bit"}


def optimizer_name(states: str, place: Place) -> str:
    """transformers' name of the AdamW with such `states` (optimizer.states). Raises ConfigError."""
    if states == "paged" and place.on_cpu:
        raise ConfigError(
            "optimizer.states: got paged, but this job trains on the CPU, in whose memory all states are; allowed "
            "here: float32 or 8bit",
            "leave optimizer.states out",
        )
    return NAMES.get(states, "adamw_torch" if place.on_cpu else "adamw_torch_fused")


class PagedAdamW(AdamW):  # type: ignore[misc]
    """bitsandbytes', which would put states that it reads back on the GPU, whole and for good."""

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = False) -> None:
        """Go on from these states, in pages again."""
        super().load_state_dict(state_dict, move_to_device=move_to_device)
        for parameter, state in self.state.items():
            for name in ("state1", "state2"):
                held = self.get_state_buffer(parameter, dtype=state[name].dtype)
                state[name] = held.copy_(state[name])
