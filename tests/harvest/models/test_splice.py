from pathlib import Path

import pytest
import torch

from harvest.config import ModelSpec
from harvest.models.capture import capture
from harvest.models.load import load_model
from harvest.models.sites import chosen_sites
from harvest.models.splice import spliced
from tests.tiny import tiny_gpt2


@pytest.mark.parametrize("name", ["embed", "layers.1.resid_pre", "layers.1.attn_out", "layers.2.mlp:in", "final"])
def test_what_is_spliced_in_is_what_is_captured_there(name: str, tmp_path: Path) -> None:
    model = load_model(ModelSpec(id=str(tiny_gpt2(tmp_path)), dtype="float32"), "cpu")
    sites, _ = chosen_sites(model, [name.replace("layers.2.mlp:in", "h.2.mlp:in")])
    ids_BT = torch.arange(10).view(2, 5)
    before = capture(model, sites, ids_BT, torch.ones_like(ids_BT))[sites[0].name]
    output = model(ids_BT).last_hidden_state
    with spliced(model, {sites[0]: lambda x: 2 * x + 1}):
        changed = capture(model, chosen_sites(model, ["final"])[0], ids_BT, torch.ones_like(ids_BT))["final"]
        if name != "final":
            # Hooks run in the order they were put on: what is captured later is what was spliced in.
            during = capture(model, sites, ids_BT, torch.ones_like(ids_BT))[sites[0].name]
            torch.testing.assert_close(during, 2 * before + 1)
    assert not torch.allclose(changed, output)
    assert torch.equal(model(ids_BT).last_hidden_state, output), "nothing is left behind"
