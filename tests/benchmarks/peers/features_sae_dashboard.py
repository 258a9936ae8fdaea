"""Time SAEDashboard on some latents of an SAE; runs in its own environment.

    .peers/sae-dashboard/bin/python tests/benchmarks/peers/features_sae_dashboard.py FOLDER activations
    .peers/sae-dashboard/bin/python tests/benchmarks/peers/features_sae_dashboard.py FOLDER LATENTS

The model is a random one of one layer, always the same. First, it reads `tokens.npy` in FOLDER, `(contexts, length)`,
and writes the rows that its hook gives to `activations.npy`; then, with a dictionary in `FOLDER/dictionary`, it prints
the seconds that the runner takes for the first LATENTS latents on the same tokens, and no time to load anything.
"""

import logging
import os
import pathlib
import sys
import time
import warnings

warnings.filterwarnings("ignore")
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sae_dashboard.sae_vis_data import SaeVisConfig  # noqa: E402
from sae_dashboard.sae_vis_runner import SaeVisRunner  # noqa: E402
from sae_lens import SAE, HookedSAETransformer  # noqa: E402
from transformer_lens import HookedTransformerConfig  # noqa: E402

logging.disable(logging.WARNING)
HOOK, WIDTH, VOCABULARY = "blocks.0.hook_resid_pre", 768, 5_000

folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
config = HookedTransformerConfig(
    n_layers=1,
    d_model=WIDTH,
    n_ctx=tokens.shape[1],
    d_head=64,
    n_heads=12,
    d_vocab=VOCABULARY,
    act_fn="gelu",
    seed=0,
    init_weights=True,
)
model = HookedSAETransformer(config)
if what == "activations":
    with torch.inference_mode():
        rows = [model.run_with_cache(part, names_filter=HOOK)[1][HOOK].flatten(0, 1) for part in tokens.split(64)]
    np.save(folder / "activations.npy", torch.cat(rows).numpy())
else:
    sae = SAE.load_from_disk(str(folder / "dictionary"), device="cpu")
    sae.cfg.rescale_acts_by_decoder_norm = True  # decoder rows have unit length: the runner insists on folding them in
    runner = SaeVisRunner(SaeVisConfig(hook_point=HOOK, features=list(range(int(what)))))
    begun = time.perf_counter()
    runner.run(sae, model, tokens)
    print(time.perf_counter() - begun)
