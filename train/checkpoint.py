"""Checkpoints: a folder per step, written beside and renamed, so that the newest one is always whole."""

import json
import os
import pathlib
import shutil
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harvest.errors import UserError
from harvest.files import differences_of, read_json, write_json
from train.ranks import ALONE, Ranks


class Checkpoints:
    """`step-N/` folders of one training run, and the identity of that run.

    Where latents are split, every process writes its own into the folder and calls `save` with the others.
    """

    def __init__(self, folder: pathlib.Path, identity: dict[str, Any], ranks: Ranks = ALONE) -> None:
        self.folder, self.identity, self.ranks = folder, json.loads(json.dumps(identity)), ranks
        self.shares = ranks.latent_shares
        own = f"-{ranks.latent_share + 1}-of-{self.shares}" if self.shares > 1 else ""
        self.name = f"state{own}.safetensors"

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the last whole checkpoint. Raises `UserError` if another run wrote it."""
        found = sorted(self.folder.glob("step-*[0-9]"))
        if not found:
            return None
        facts = read_json(found[-1] / "state.json", "checkpoint")
        if facts["identity"] != self.identity:
            differing = [key for key, _, _ in differences_of(self.identity, facts["identity"])]
            raise UserError(
                f"checkpoints {self.folder} were made with other settings ({', '.join(differing)}); "
                "delete that folder to train anew, or restore the settings to continue"
            )
        if facts["shares"] != self.shares:
            raise UserError(
                f"checkpoints {self.folder} have the latents split over {facts['shares']} processes, and there are "
                f"{self.shares}; start {facts['shares']} to continue, or delete that folder to train anew"
            )
        return load_file(found[-1] / self.name), facts

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write a checkpoint; older ones go only once it is in place. One with NaN in it never replaces a good one."""
        if broken := [name for name, tensor in tensors.items() if tensor.isnan().any()]:
            raise UserError(
                f"{', '.join(broken)} hold NaN after step {step}; the last good checkpoint is kept in {self.folder}: "
                "lower learning_rate or look at the store's rows"
            )
        final = self.folder / f"step-{step:09d}"
        beside = final.with_suffix(".partial")
        first = self.ranks.latent_share == 0
        try:
            if first:
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir(parents=True)
            self.ranks.wait()
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside / self.name)
            with (beside / self.name).open("rb") as file:
                os.fsync(file.fileno())  # whole even if the machine, not just the process, goes down
            self.ranks.wait()
            if first:
                write_json(beside / "state.json", {**facts, "identity": self.identity, "shares": self.shares})
                shutil.rmtree(final, ignore_errors=True)
                beside.rename(final)
        except (OSError, SafetensorError) as error:  # a full disk, as Python says it and as safetensors does
            shutil.rmtree(beside, ignore_errors=True)
            raise UserError(
                f"checkpoint {final}: cannot be written ({error}); the one before it is kept: "
                "make room and run the same command"
            ) from None
        if first:
            for old in self.folder.glob("step-*"):
                if old != final:
                    shutil.rmtree(old, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
