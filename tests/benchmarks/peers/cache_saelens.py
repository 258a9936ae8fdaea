"""Time SAELens's CacheActivationsRunner on token sequences of one length; runs in SAELens's environment.

    .peers/sae-lens/bin/python tests/benchmarks/peers/cache_saelens.py MODEL HOOK_NAME WIDTH TOKENS.npy BATCH

Prints tokens a second, without the time to load the model; it rounds the tokens up to full buffers. It is spared
tokenising, and caches one site, in float32 because its cache knows no bfloat16; the model runs in bfloat16.
"""

import logging
import os
import pathlib
import sys
import tempfile
import time
import warnings

warnings.filterwarnings("ignore")
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TQDM_DISABLE": "1"}

import numpy as np  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig  # noqa: E402

logging.disable(logging.WARNING)
disable_progress_bars()
model, hook_name, width, tokens, batch = sys.argv[1:]
sequences = np.load(tokens)
with tempfile.TemporaryDirectory() as folder:
    config = CacheActivationsRunnerConfig(
        dataset_path="given below",
        model_name=model,
        model_class_name="AutoModelForCausalLM",
        model_from_pretrained_kwargs={"torch_dtype": "bfloat16"},
        model_batch_size=int(batch),
        hook_name=hook_name,
        d_in=int(width),
        training_tokens=sequences.size,
        context_size=sequences.shape[1],
        new_cached_activations_path=str(pathlib.Path(folder) / "cache"),
        buffer_size_gb=0.1,
        dtype="float32",
        device="cpu",
        prepend_bos=False,
        shuffle=False,
        streaming=False,
    )
    runner = CacheActivationsRunner(config, override_dataset=Dataset.from_dict({"tokens": sequences}))
    begun = time.perf_counter()
    cached = len(runner.run())
    seconds = time.perf_counter() - begun
print(cached * sequences.shape[1] / seconds)
