"""Time training steps of SAELens (forward, backward, Adam) on random activations; runs in SAELens's environment.

    .peers/sae-lens/bin/python tests/benchmarks/peers/train_saelens.py --architecture batchtopk --device cuda

Prints one JSON line. Weights are float32. On a GPU the forward pass runs in bfloat16, which is its trainer's option
`autocast`; on a CPU it does not, as by default. It is spared its trainer's gradient clipping and counting of firing.
"""

import contextlib
import logging
import os
import warnings

warnings.filterwarnings("ignore")
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}

import sae_lens  # noqa: E402
import torch  # noqa: E402
from sae_lens.saes.sae import TrainStepInput  # noqa: E402
from train_timing import arguments, print_speed  # noqa: E402

logging.disable(logging.WARNING)
given = arguments(__doc__, ["topk", "batchtopk", "matryoshka", "jumprelu"])
shape = {"d_in": given.d, "d_sae": given.latents, "device": given.device, "dtype": "float32"}
torch.manual_seed(0)
sae: torch.nn.Module
match given.architecture:
    case "topk":
        sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(k=given.k, **shape))
    case "batchtopk":
        sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(k=given.k, **shape))
    case "matryoshka":
        widths = [given.latents // 4, given.latents // 2, given.latents]
        config = sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(k=given.k, matryoshka_widths=widths, **shape)
        sae = sae_lens.MatryoshkaBatchTopKTrainingSAE(config)
    case "jumprelu":
        sae = sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(**shape))
coefficients = {"l0": 1.0} if given.architecture == "jumprelu" else {}
optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)
cuda = torch.device(given.device).type == "cuda"


def step(rows_BD: torch.Tensor) -> None:
    with torch.autocast("cuda", dtype=torch.bfloat16) if cuda else contextlib.nullcontext():
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=rows_BD,
                coefficients=coefficients,
                dead_neuron_mask=None,
                n_training_steps=0,
                is_logging_step=False,
            )
        )
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()


print_speed(f"SAELens {sae_lens.__version__}", given, step, torch.randn(given.batch, given.d, device=given.device))
