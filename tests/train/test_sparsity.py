"""Every σ against a dense float64 reference, and the way to add one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harvest.errors import UserError
from train.config import DictionarySpec
from train.dictionary import Dictionary
from train.kernels import pattern_of
from train.objective import Objective, Targets
from train.sparsity import SPARSITIES, Sparsity, make_sparsity
from train.sparsity.base import above

ROWS, WIDTH, LATENTS, L0 = 64, 6, 24, 4


def dictionary_with(method, seed=0, l0=L0):
    torch.manual_seed(seed)
    dictionary = Dictionary(WIDTH, WIDTH, make_sparsity(method, l0, LATENTS), centered=True).double()
    dictionary.start(torch.Generator().manual_seed(seed))
    dictionary.b_enc.data.normal_(std=0.1)
    dictionary.b_dec.data.normal_(std=0.1)
    x = torch.randn(ROWS, WIDTH, dtype=torch.float64)
    dictionary.sparsity.start(dictionary.preactivations(x - dictionary.b_dec))
    if method == "gated":
        dictionary.sparsity.r_mag.data.normal_(std=0.3)
        dictionary.sparsity.b_mag.data.normal_(std=0.3)
    return dictionary, x


def reference(dictionary, method, z):
    """σ(z) as its paper writes it, on the whole matrix."""
    sparsity = dictionary.sparsity
    if method == "relu":
        return z.clamp_min(0)
    if method == "topk":
        kth = z.sort(dim=1, descending=True).values[:, sparsity.k - 1 : sparsity.k]
        return torch.where(z >= kth, z, 0).clamp_min(0)
    if method == "batchtopk":
        kth = z.flatten().sort(descending=True).values[round(sparsity.l0 * len(z)) - 1]
        return torch.where(z >= kth, z, 0).clamp_min(0)
    if method == "jumprelu":
        return torch.where(z > sparsity.threshold, z, 0)
    magnitude = sparsity.r_mag.exp() * (z - dictionary.b_enc) + sparsity.b_mag
    return torch.where(z > 0, magnitude.clamp_min(0), 0)


@pytest.mark.parametrize("method", SPARSITIES)
@given(seed=st.integers(0, 2**16))
def test_latents_equal_the_formula(method, seed):
    dictionary, x = dictionary_with(method, seed)
    z = (x - dictionary.b_dec) @ dictionary.W_enc.T + dictionary.b_enc
    expected = reference(dictionary, method, z)
    torch.testing.assert_close(dictionary.encode(x).dense(), expected)
    torch.testing.assert_close(dictionary(x), expected @ dictionary.W_dec + dictionary.b_dec)


@pytest.mark.parametrize("method", SPARSITIES)
def test_looking_in_bfloat16_changes_no_value(method):
    """Choices and values are those of the master type, but for the few of TopK's that rounding puts far behind."""
    dictionary, x = dictionary_with(method)
    dictionary, x = dictionary.float(), x.float()
    exact, rounded = dictionary.encode(x).dense(), dictionary.encode(x, rounded=True).dense()
    both = (exact > 0) & (rounded > 0)
    assert both.sum() >= (0.995 if method == "topk" else 1) * (exact > 0).sum()
    assert ((rounded > 0) == (exact > 0)).all() or method == "topk"
    torch.testing.assert_close(rounded[both], exact[both])


def test_batchtopk_keeps_its_threshold_for_inference():
    dictionary, x = dictionary_with("batchtopk")
    smallest = dictionary.encode(x).values_N
    smallest = smallest[smallest > 0].min()
    assert float(dictionary.sparsity.threshold) == pytest.approx(float(smallest.detach()), rel=1e-6)
    dictionary.sparsity.threshold.mul_(0.999)  # off the latent that it was taken from
    dictionary.eval()
    z = dictionary.preactivations(x - dictionary.b_dec)
    torch.testing.assert_close(dictionary.encode(x).dense(), torch.where(z > dictionary.sparsity.threshold, z, 0))


def jumprelu_reference(z, threshold, bandwidth, upstream):
    """Pseudo-gradients with respect to θ of z·H(z − θ) and of H(z − θ) (Rajamanoharan et al. 2024, eq. 11 and 12)."""
    kernel = ((z - threshold).abs() < bandwidth / 2).double() / bandwidth
    return (-threshold * kernel * upstream).sum(0), (-kernel * upstream).sum(0)


def test_jumprelu_gradients_are_the_papers():
    dictionary, x = dictionary_with("jumprelu")
    sparsity, upstream = dictionary.sparsity, torch.randn(ROWS, LATENTS, dtype=torch.float64)
    codes = dictionary.encode(x)
    z = dictionary.preactivations(x - dictionary.b_dec).detach()
    threshold = sparsity.threshold.detach()
    of_values, of_steps = jumprelu_reference(z, threshold, sparsity.bandwidth, upstream)
    (found,) = torch.autograd.grad((codes.dense() * upstream).sum(), sparsity.log_threshold_F, retain_graph=True)
    torch.testing.assert_close(found, of_values * threshold)
    penalty = sparsity.penalty(codes.z_N, codes.values_N, codes.pattern, torch.ones(LATENTS))
    (found,) = torch.autograd.grad(penalty * ROWS, sparsity.log_threshold_F)
    _, of_steps = jumprelu_reference(z, threshold, sparsity.bandwidth, torch.ones_like(z))
    torch.testing.assert_close(found, of_steps * threshold)
    assert float(penalty.detach()) == pytest.approx(float((z > threshold).sum() / ROWS))


MOVED = {  # term -> the parameters its gradient reaches, whatever the sparsity
    "reconstruction": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "anchors": {"W_enc", "W_dec"},
    "auxk": {"W_enc", "b_enc", "W_dec", "b_dec"},
}
OWN = {  # (method, term) -> what differs
    ("jumprelu", "reconstruction"): {"W_enc", "b_enc", "W_dec", "b_dec", "sparsity.log_threshold_F"},
    ("gated", "reconstruction"): {"W_enc", "W_dec", "b_dec", "sparsity.r_mag", "sparsity.b_mag"},
    ("relu", "penalty"): {"W_enc", "b_enc", "b_dec"},
    ("gated", "penalty"): {"W_enc", "b_enc", "b_dec"},
    ("jumprelu", "penalty"): {"sparsity.log_threshold_F"},
    ("gated", "gate"): {"W_enc", "b_enc", "b_dec"},
}


def objective_of(method, **keys):
    dictionary, x = dictionary_with(method)
    spec = DictionarySpec.model_validate(
        {"reads": ["x"], "latents": LATENTS, "sparsity": {method: {"l0": L0}}, "tokens": 100, "batch": ROWS, **keys}
    )
    directions = torch.nn.functional.normalize(torch.randn(3, WIDTH, dtype=torch.float64))
    anchors = Targets(directions, directions) if spec.anchors else None
    return Objective(dictionary, spec, [WIDTH], anchors), x


@pytest.mark.parametrize("method", SPARSITIES)
@pytest.mark.parametrize("term", ["reconstruction", "penalty", "gate", "anchors", "auxk"])
def test_each_term_moves_exactly_the_parameters_it_should(method, term):
    """The gradient of one term alone reaches these parameters and no others."""
    objective, x = objective_of(method, anchors={"source": "truth", "count": 3}, auxk={"dead_after": 1})
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[-6:] = True
    terms = objective.terms(x, x, dead, rounded=False)[0]
    if term not in terms:
        assert (method, term) not in OWN
        return
    terms[term].backward()
    moved = {
        name
        for name, parameter in objective.dictionary.named_parameters()
        if parameter.grad is not None and bool((parameter.grad != 0).any())
    }
    assert moved == OWN.get((method, term), MOVED.get(term))


def test_the_auxiliary_loss_moves_dead_latents_only():
    objective, x = objective_of("topk", auxk={"dead_after": 1})
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[-6:] = True
    objective.terms(x, x, dead, rounded=False)[0]["auxk"].backward()
    for gradient in (objective.dictionary.W_enc.grad, objective.dictionary.W_dec.grad):
        assert bool((gradient[:-6] == 0).all())
        assert bool((gradient[-6:] != 0).any(1).all())


def test_a_new_sparsity_is_one_class_and_one_line(monkeypatch):
    class Shifted(Sparsity):
        """The README's example: pre-activations above 1."""

        architecture = "shifted"

        def select(self, z_BF):
            return pattern_of(above(z_BF, 1.0))

        def activate(self, z_N, bias_N, pattern):
            return z_N * (z_N > 1.0)

    monkeypatch.setitem(SPARSITIES, "shifted", Shifted)
    dictionary, x = dictionary_with("shifted")
    z = dictionary.preactivations(x - dictionary.b_dec)
    torch.testing.assert_close(dictionary.encode(x).dense(), torch.where(z > 1, z, 0))
    objective, x = objective_of("shifted", matryoshka={"prefixes": [0.5, 1]}, anchors={"source": "truth", "count": 3})
    outcome = objective(x, x, 0.0, None, False)
    outcome.loss.backward()
    assert bool((objective.dictionary.W_enc.grad != 0).any())


def test_unknown_methods_name_those_there_are():
    with pytest.raises(UserError, match="topp: no such method; there are relu, jumprelu, topk, batchtopk, gated"):
        make_sparsity("topp", 4, 8)
