"""A dictionary of scaled activations and the one of the model's own units are the same function."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.synthetic import Synthetic, synthetic_store
from train.dictionary import Dictionary
from train.scaling import Scaling, unscale
from train.sparsity import SPARSITIES, make_sparsity

SITES = {
    # width, mean, scale: as far apart as those of real sites
    "a": (5, 3.0, 40.0),
    "b": (7, -200.0, 0.02),
    "c": (4, 0.0, 1.0),
}
KINDS: dict[str, tuple[list[str], list[str], bool]] = {
    "sae": (["a"], ["a"], False),
    "sae with skip": (["b"], ["b"], True),
    "transcoder": (["a"], ["b"], False),
    "skip transcoder": (["b"], ["a"], True),
    "transcoder of several": (["a", "c"], ["c", "b"], False),
    "crosscoder": (["a", "b", "c"], ["a", "b", "c"], False),
}
LATENTS = 24


def scaling_of(sites: list[str]) -> Scaling:
    rng = torch.Generator().manual_seed(1)
    means, scales = [], []
    for site in sites:
        width, mean, scale = SITES[site]
        means.append(mean + torch.randn(width, generator=rng, dtype=torch.float64))
        scales.append(torch.full((width,), scale, dtype=torch.float64))
    return Scaling(torch.cat(means), torch.cat(scales))


def random_dictionary(read: Scaling, written: Scaling, centered: bool, skip: bool, method: str) -> Dictionary:
    """Every parameter and threshold random, in float64, for use."""
    rng = torch.Generator().manual_seed(2)
    sparsity = make_sparsity(method, 4, LATENTS)
    dictionary = Dictionary(len(read.mean), len(written.mean), sparsity, centered, skip).double().eval()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64))
        for buffer in dictionary.buffers():
            buffer.fill_(0.4)
        dictionary.normalize_decoder()
    return dictionary


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SPARSITIES)
def test_same_function_in_other_units(method: str, kind: str) -> None:
    reads, writes, skip = KINDS[kind]
    read, written = scaling_of(reads), scaling_of(writes)
    dictionary = random_dictionary(read, written, reads == writes, skip, method)
    scaled_BP = torch.randn(50, len(read.mean), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    raw_BP = scaled_BP / read.scale + read.mean

    with torch.no_grad():
        before = dictionary.encode(scaled_BP)
        latents_BF, scaled_BR = before.dense(), dictionary(scaled_BP)
        unscale(dictionary, read, written)
        found_BF, found_BR = dictionary.encode(raw_BP).dense(), dictionary(raw_BP)

    assert 1 < float(before.l0()) < LATENTS, "some are active, and some are not"
    close(found_BF, latents_BF / written.scale[0])
    close((found_BR - written.mean) * written.scale, scaled_BR)
    width = SITES[writes[0]][0]
    if len(writes) == 1:
        close(dictionary.W_dec[:, :width].norm(dim=1), torch.ones(LATENTS, dtype=torch.float64))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=1e-6, atol=1e-7)


def test_scaled_activations_have_mean_zero_and_variance_one(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, Synthetic(rows=3_000))
    whole = {site: store.read(site, 0, store.rows) for site in store.widths}
    scaling = Scaling.of(store, ["y", "x"])
    scaled = scaling(torch.cat([whole["y"], whole["x"]], 1)).double()
    torch.testing.assert_close(scaled.mean(0), torch.zeros(40).double(), rtol=0, atol=1e-4)
    for part in (scaled[:, :16], scaled[:, 16:]):
        assert float(part.var(0, unbiased=False).mean()) == pytest.approx(1, rel=1e-5)
    for site, scale in (("y", scaling.scale[:16]), ("x", scaling.scale[16:])):
        assert len(set(scale.tolist())) == 1, "one factor a site keeps directions as they are"
        variance = whole[site].double().numpy().var(0).mean()
        np.testing.assert_allclose(scale[0], variance**-0.5, rtol=1e-5)


def test_a_constant_site_is_left_in_its_units(tmp_path: Path) -> None:
    store = synthetic_store(tmp_path, Synthetic(rows=300, active=0.0))
    scaling = Scaling.of(store, ["x"])
    assert scaling.scale.tolist() == [1.0] * 24
    assert scaling(store.read("x", 0, 9)).abs().max() < 1e-6
