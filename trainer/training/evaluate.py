"""The loss on rows that are not trained on."""

import torch

from trainer.data.collate import Collator
from trainer.data.encode import IGNORED
from trainer.data.rows import Rows
from trainer.node.ranks import Place
from trainer.vision.collate import require_images


class Validation:
    """Measures the loss per trained token over all `rows`, `batch_size` of them at a time on every rank."""

    def __init__(self, rows: Rows, collator: Collator, place: Place, batch_size: int) -> None:
        self.rows, self.collator, self.place, self.batch_size = rows, collator, place, batch_size

    @torch.no_grad()
    def loss(self, model: torch.nn.Module) -> float:
        """Mean negative log-likelihood; every rank takes part, and computes as many batches as any other (ZeRO-3
        gathers weights for each). The number does not depend on how many ranks there are."""
        training = model.training
        model.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.place.device)
        step = self.batch_size * self.place.world
        for start in range(0, len(self.rows), step):
            mine = range(start + self.place.rank, min(start + step, len(self.rows)), self.place.world)
            total += self._batch(model, list(mine) or [0], counted=bool(mine))
        model.train(training)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return float(total[0] / total[1])

    def _batch(self, model: torch.nn.Module, numbers: list[int], *, counted: bool) -> torch.Tensor:
        """(summed loss, trained tokens) of a batch; zeros for one that only keeps step with the others."""
        inputs = self.collator([self.rows[number] for number in numbers])
        require_images(inputs)
        inputs.pop("rows")
        inputs = {
            name: value.to(self.place.device) if torch.is_tensor(value) else value for name, value in inputs.items()
        }
        count = (inputs["labels"][:, 1:] != IGNORED).sum()
        loss = model(**inputs).loss
        return torch.stack([loss.double() * count, count.double()]) * float(counted)
