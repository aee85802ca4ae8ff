"""A recorded step of decoding gives the logits of a step that is called, for bases as they are and in 4 bits."""

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("family", ["internlm2", "qwen3"])
def test_a_recorded_step_is_the_step(family, quantization, tmp_path):
    from transformers import StaticCache

    from trainer.chat.replay import can_replay, replay_steps
    from trainer.config.job import Data, Model, TrainConfig
    from trainer.models.load import load_model
    from trainer.new_model.seeded import write_model

    write_model(family, "tiny", tmp_path / "base", 7)
    chosen = Model(path=str(tmp_path / "base"), quantization=quantization)
    config = TrainConfig.model_construct(model=chosen, data=Data.model_construct(sources=[]))
    model = load_model(config, torch.device("cuda")).eval()
    assert can_replay(model, quantization)
    ids = torch.randint(3, 400, (1, 24), generator=torch.Generator().manual_seed(1)).cuda()

    def logits():
        cache = StaticCache(config=model.config, max_cache_len=64)
        found = []
        for piece in [ids[:, :8], *ids[:, 8:].split(1, dim=1)]:
            seen = cache.get_seq_length()
            places = (torch.arange(piece.shape[1], device="cuda") + seen)[None]
            mask = (torch.arange(64, device="cuda") <= places[0, :, None])[None, None]
            out = model(input_ids=piece, position_ids=places, attention_mask=mask, past_key_values=cache)
            found.append(out.logits[0, -1].float().clone())
        return torch.stack(found)

    with torch.no_grad():
        called = logits()
        replay_steps(model)
        replayed, again = logits(), logits()
    assert torch.equal(replayed, again)
    assert (replayed - called).norm() < 1e-2 * called.norm()
    assert called.std(0).max() > 0.01
