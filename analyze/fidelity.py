"""What a model loses when it goes on with a dictionary's reconstruction in the place of its own activations.

Shapes: B texts of T tokens in a batch, V tokens of the vocabulary; n positions that are replaced.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyze.activity import slices
from harvest.config import ModelSpec
from harvest.corpora.corpus import Corpus
from harvest.errors import UserError
from harvest.files import make_folder, write_json
from harvest.joined import JoinedStore, Place, open_store
from harvest.model_source import batches, pad
from harvest.models.capture import text_inputs
from harvest.models.load import model_facts
from harvest.models.sites import chosen_sites
from harvest.models.splice import spliced
from harvest.models.unembedding import NoLens, load_causal
from harvest.progress import progress
from harvest.store import Store
from train.config import training_rows
from train.dictionary import Dictionary
from train.files import load

TOKENS = 32_768
"""At most so many are read: the mean loss of a language model is then known to about 0.02 nats, and differences between
two losses on the same tokens much better."""
BATCH_TOKENS = 2048
LOGITS = 2**28
"""In one pass: half a GiB in bfloat16."""
LOGITS_AT_ONCE = 2**22
"""Compared at a time: 16 MiB of them in float32, as larger blocks are new memory each time."""
ALL = "all"


def measure_fidelity(
    dictionary_folder: pathlib.Path, place: Place, model: ModelSpec, corpus: pathlib.Path, output: pathlib.Path
) -> None:
    """Run a model with its activations at the written sites replaced, on texts that training never saw.

    Writes `fidelity.json`: `rows`, the positions replaced whose next token is known, and `contexts`, the texts they are
    in; `sites`: of each written site, and where there are several of `all` together, `ce_clean`, `ce_spliced` and
    `ce_zero`, the mean cross-entropy of the next token at these positions in nats, as the model is, with the
    reconstruction, and with zeros; `loss_recovered`, `(ce_zero − ce_spliced) / (ce_zero − ce_clean)`, null where zeros
    do no harm; `kl`, the mean of `KL(clean ‖ spliced)` in nats. `not_measured` says in a sentence why there is nothing,
    or is null.

    The positions are those that are rows of the store: what a special token holds, such as the beginning's, is left as
    it is. They are the store's last, held out from training where any were, up to `TOKENS`. What a dictionary reads is
    read in the clean pass, so that a transcoder's output takes the place of what its block gives.

    Raises:
        UserError: the store is unfinished or not the dictionary's, or model or corpus are not those of its rows.
    """
    store = open_store(place)
    dictionary, cfg = load(dictionary_folder)
    facts = cfg["metadata"]
    if facts["store"] != store.fingerprint:
        raise UserError(f"store {store.path}: the dictionary in {dictionary_folder} was trained on another one")
    store.check_finished()
    make_folder(output)
    try:
        found = _measured(dictionary, facts, store, model, corpus)
    except NoLens as why:
        found = {"rows": 0, "contexts": 0, "sites": {}, "not_measured": str(why)}
    write_json(output / "fidelity.json", found)


def _measured(
    dictionary: Dictionary, facts: dict[str, Any], store: Store, spec: ModelSpec, corpus_path: pathlib.Path
) -> dict[str, Any]:
    if isinstance(store, JoinedStore):
        raise NoLens("the dictionary is of several models, and no one of them can go on with all it writes")
    if store.facts["model"] != model_facts(spec):
        raise UserError(f"--model: {spec.id} is not the model that the rows of {store.path} are from")
    corpus = Corpus(corpus_path)
    if store.facts["corpus"] != corpus.fingerprint:
        raise UserError(f"--corpus: {corpus_path} is not the corpus that the rows of {store.path} are from")
    if store.facts.get("rows_are") == "texts":
        raise NoLens("its rows are whole texts, and predict no token")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = load_causal(spec, device)
    dictionary.to(device)
    reads, writes = ([store.site(site) for site in facts[key]] for key in ("reads", "writes"))
    splicing = Splicing(whole, store, dictionary, reads, writes)
    kept = training_rows(store.rows, facts["spec"]["holdout"])
    start = kept if kept < store.rows else 0
    stop = min(store.rows, start + TOKENS)
    sums: dict[str, Losses] = {}
    contexts = 0
    with progress(stop - start, "fidelity", "token") as bar:
        for ids_BT, mask_BT, replaced_BT in _batches_of_rows(
            corpus, start, stop, whole.config.get_text_config().vocab_size
        ):
            for name, losses in splicing.losses(ids_BT, mask_BT, replaced_BT).items():
                sums[name] = sums[name] + losses if name in sums else losses
            contexts += int(replaced_BT.any(1).sum())
            bar.update(int(replaced_BT.sum()))
    return {
        "rows": sums[writes[0]].positions,
        "contexts": contexts,
        "sites": {name: losses.figures() for name, losses in sums.items()},
        "not_measured": None,
    }


def _batches_of_rows(corpus: Corpus, start: int, stop: int, vocabulary: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Token ids `(B, T)`, their mask, and which of them are rows `start` to `stop`."""
    first, last = corpus.sequences_of(start, stop)
    tokens, keep, offsets = corpus.read_sequences(first, last)
    rows = np.cumsum(keep) - 1 + corpus.row_offsets[first]
    wanted = torch.from_numpy(keep & (rows >= start) & (rows < stop))
    for batch in batches(np.diff(offsets), min(BATCH_TOKENS, LOGITS // vocabulary)):
        ids_BT, mask_BT, at_BT = pad(batch, tokens, offsets)
        yield ids_BT, mask_BT, mask_BT.bool() & wanted[at_BT]


@dataclass(frozen=True)
class Losses:
    """Sums over some positions, in nats."""

    positions: int
    clean: float
    spliced: float
    zero: float
    divergence: float

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(*(ours + theirs for ours, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def figures(self) -> dict[str, float | None]:
        clean, spliced, zero, divergence = (
            value / self.positions for value in (self.clean, self.spliced, self.zero, self.divergence)
        )
        recovered = (zero - spliced) / (zero - clean) if zero > clean else None
        return {
            "ce_clean": clean,
            "ce_spliced": spliced,
            "ce_zero": zero,
            "loss_recovered": recovered,
            "kl": divergence,
        }


class Splicing:
    """A causal model, and what a dictionary puts in the place of its activations."""

    def __init__(
        self, whole: Any, store: Store, dictionary: Dictionary, reads: Sequence[str], writes: Sequence[str]
    ) -> None:
        self.whole, self.base, self.dictionary, self.dtype = whole, whole.base_model, dictionary, store.dtype
        self.reads, self.written = list(reads), dict(slices(store, list(writes)))
        self.sites = {site.name: site for site in chosen_sites(self.base, dict.fromkeys([*reads, *writes]))[0]}

    @torch.inference_mode()
    def losses(self, ids_BT: Tensor, mask_BT: Tensor, replaced_BT: Tensor) -> dict[str, Losses]:
        """Of each written site, and of several together: with what is there at `replaced_BT` replaced, at those of
        these positions after which a token comes."""
        at_n = replaced_BT.flatten().nonzero()[:, 0]
        captured: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], Tensor]:
            def as_it_is(x: Tensor) -> Tensor:
                captured.setdefault(name, x.clone())  # a module that runs twice is read at its first run
                return x

            return as_it_is

        inputs = text_inputs(self.whole, ids_BT, mask_BT)
        with spliced(self.base, {self.sites[name]: keep(name) for name in self.reads}):
            clean_BTV = self.whole(**inputs).logits
        device = self.dictionary.b_dec.device
        seen = [captured[name].reshape(ids_BT.numel(), -1) for name in self.reads]
        rows = [x_ND[at_n.to(x_ND.device)].to(device, self.dtype) for x_ND in seen]
        output_nR = self.dictionary(torch.cat(rows, 1).float())
        variants = {name: [name] for name in self.written}
        if len(variants) > 1:
            variants[ALL] = list(self.written)
        found = {}
        for variant, names in variants.items():
            changed = []
            for y_nR in (output_nR, torch.zeros_like(output_nR)):
                there = {self.sites[name]: put(at_n, y_nR[:, self.written[name]]) for name in names}
                with spliced(self.base, there):
                    changed.append(self.whole(**inputs).logits)
            found[variant] = compared(ids_BT, replaced_BT[:, :-1] & mask_BT[:, 1:].bool(), clean_BTV, *changed)
        return found


def put(at_n: Tensor, y_nD: Tensor) -> Callable[[Tensor], Tensor]:
    """What replaces the vectors of a site at these positions, counted over all texts."""

    def replace(x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, y_nD.shape[1]).clone()
        x_ND[at_n.to(x.device)] = y_nD.to(x.device, x.dtype)
        return x_ND.view(x.shape)

    return replace


def compared(ids_BT: Tensor, followed_BU: Tensor, clean_BTV: Tensor, spliced_BTV: Tensor, zero_BTV: Tensor) -> Losses:
    """What three runs of a model say of the next token, at the positions of `followed_BU` `(B, T − 1)`, after all of
    which one comes."""
    found = Losses(0, 0.0, 0.0, 0.0, 0.0)
    ids_BT = ids_BT.to(clean_BTV.device)
    at_n2 = followed_BU.to(clean_BTV.device).nonzero()
    for at_b2 in torch.split(at_n2, max(1, LOGITS_AT_ONCE // clean_BTV.shape[-1])):
        row_b, position_b = at_b2.unbind(1)
        targets_b1 = ids_BT[row_b, position_b + 1][:, None]
        clean_bV, other_bV, no_bV = (
            logits_BTV[row_b, position_b].float().log_softmax(1) for logits_BTV in (clean_BTV, spliced_BTV, zero_BTV)
        )
        gains = (log_bV.gather(1, targets_b1).double().sum() for log_bV in (clean_bV, other_bV, no_bV))
        divergence_b = (clean_bV.exp() * (clean_bV - other_bV)).sum(1)
        sums = (*(-gain for gain in gains), divergence_b.double().sum())
        found += Losses(len(at_b2), *map(float, sums))
    return found
