"""What a dictionary's directions are near: each other, the tokens that they speak for, the labels' means.

Shapes: F latents, R width written, L labels, V tokens.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from analyze.directions import decoder_directions, largest, products
from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.files import make_folder, write_json
from harvest.joined import JoinedStore, Place, open_store
from harvest.models.load import load_tokenizer, model_facts
from harvest.models.unembedding import NoLens, read_unembedding
from harvest.models.vocabulary import token_bytes
from harvest.progress import progress
from harvest.store import Store
from train.anchors import label_sums
from train.dictionary import Dictionary
from train.files import load

NEIGHBOURS, TOKENS, LABELS = 8, 10, 5


@torch.inference_mode()
def measure_geometry(
    dictionary_folder: pathlib.Path, place: Place, model: ModelSpec | None, output: pathlib.Path
) -> None:
    """Measure a dictionary's directions. `model`: the one that the last site written is of; without it, no lens.

    Writes into `output`:
    `geometry.safetensors`: `neighbours` `(F, 8)` int32, the latents whose decoder directions are nearest, and
    `neighbour_cosines`; `encoder_decoder_cosine` `(F,)`, NaN where what is read is not what is written. Where there is
    a lens: `top_tokens` and `bottom_tokens` `(F, 10)` int32, and `top_logits` and `bottom_logits`. For each label set
    `<set>/nearest_labels` `(F, 5)` int32 and `<set>/nearest_label_cosines`: of the decoder direction and the mean of
    the label's rows, less that of all. Nearest, largest or smallest come first; -1 and NaN where there are no more.
    `geometry.json`: `tokens`, id -> text, of the tokens above; `site`, where the lens was read, or null, and then
    `no_lens` says why; `sets`, label set -> names.

    Where several sites are written, directions are over all of them (`decoder_directions`); the lens is that of the
    last one. Logits are those that an activation of 1 adds, before the final norm divides by the stream's length.

    Raises:
        UserError: the store is unfinished or not the dictionary's, or the model is not the one its rows are from.
    """
    store = open_store(place)
    dictionary, cfg = load(dictionary_folder)
    facts = cfg["metadata"]
    if facts["store"] != store.fingerprint:
        raise UserError(f"store {store.path}: the dictionary in {dictionary_folder} was trained on another one")
    store.check_finished()
    reads, writes = ([store.site(site) for site in facts[key]] for key in ("reads", "writes"))
    _check_model(model, store, writes[-1])
    make_folder(output)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    widths = [store.widths[site] for site in writes]
    directions_FR, weight_R = decoder_directions(dictionary, widths)
    cosines_FN, neighbours_FN = largest(directions_FR.to(device), directions_FR.to(device), NEIGHBOURS, but_itself=True)
    tensors = {
        "neighbours": neighbours_FN,
        "neighbour_cosines": cosines_FN,
        "encoder_decoder_cosine": _encoder_cosine(dictionary, directions_FR, weight_R, reads == writes),
        **_nearest_labels(store, writes, directions_FR, weight_R),
    }
    about: dict[str, Any] = {"tokens": {}, "site": None, "no_lens": None, "sets": store.labels}
    try:
        if model is None:
            raise NoLens("no text model was given to read tokens with")
        of_tokens, about["tokens"] = lens(model, dictionary.W_dec[:, -widths[-1] :], _own_name(store, writes[-1]))
        tensors, about["site"] = {**tensors, **of_tokens}, writes[-1]
    except NoLens as why:
        about["no_lens"] = str(why)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output / "geometry.safetensors")
    write_json(output / "geometry.json", about)


def _check_model(model: ModelSpec | None, store: Store, site: str) -> None:
    """Another model's tokens would be read without a sign that they mean nothing."""
    facts = store.facts[site.partition("/")[0]] if isinstance(store, JoinedStore) else store.facts
    if model is not None and facts.get("model") != model_facts(model):
        whose = "another model" if "model" in facts else "no model"
        raise UserError(f"--model: {model.id}: the rows of {site} in {store.path} are from {whose}")


def _own_name(store: Store, site: str) -> str:
    return site.partition("/")[2] if isinstance(store, JoinedStore) else site


def _encoder_cosine(dictionary: Dictionary, directions_FR: Tensor, weight_R: Tensor, same_sites: bool) -> Tensor:
    """Of each latent's encoder and decoder row, `(F,)`."""
    if not same_sites:
        return torch.full((dictionary.latents,), torch.nan)
    # Where a site's written directions count for less, what is read of it is larger by as much.
    return (normalize(dictionary.W_enc / weight_R) * directions_FR).sum(1)


def _nearest_labels(store: Store, writes: Sequence[str], directions_FR: Tensor, weight_R: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    sums = label_sums(store, writes, list(store.labels), store.rows) if store.labels else {}
    for name, (sums_GR, rows_G) in sums.items():
        # A label that no row or every row has stands for no direction.
        usable = np.flatnonzero((rows_G[:-1] > 0) & (rows_G[:-1] < store.rows))
        means_LR = sums_GR[usable] / rows_G[usable, None] - sums_GR.sum(0) / store.rows
        labels_LR = normalize(torch.from_numpy(means_LR).float() * weight_R)
        cosines_FC, which_FC = largest(directions_FR, labels_LR, LABELS)
        number_L = torch.tensor([*usable.tolist(), -1], dtype=torch.int32)  # the last stands for none
        found |= {f"{name}/nearest_labels": number_L[which_FC.long()], f"{name}/nearest_label_cosines": cosines_FC}
    return found


def lens(model: ModelSpec, W_dec_FD: Tensor, site: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tokens that decoder rows at `site` make more and less likely: the arrays of `geometry.safetensors`, and the
    tokens' texts by their ids. Ids that stand for no text, with which an embedding is padded, are left out.

    Raises `NoLens` where there is none.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unembedding = read_unembedding(model, site, device)
    weight_VD, width = unembedding.weight_VD, W_dec_FD.shape[1]
    if weight_VD.shape[1] != width:
        raise NoLens(f"{site} is {width} wide, and the output embedding of {model.id} {weight_VD.shape[1]}")
    texts = token_bytes(load_tokenizer(model))[: len(weight_VD)]
    ids_V = torch.tensor([number for number, text in enumerate(texts) if text], dtype=torch.int32)
    if len(ids_V) < len(weight_VD):
        weight_VD = weight_VD[ids_V.long().to(weight_VD.device)]
    tops, bottoms = [], []
    with progress(len(W_dec_FD), "logit lens", "latent") as bar:
        for rows, logits_bV in products(unembedding.fold(W_dec_FD.to(weight_VD.device)), weight_VD):
            tops.append(logits_bV.topk(TOKENS))
            bottoms.append(logits_bV.topk(TOKENS, largest=False))
            bar.update(rows.stop - rows.start)
    tensors = {}
    for name, parts in (("top", tops), ("bottom", bottoms)):
        tensors[f"{name}_logits"] = torch.cat([part.values for part in parts]).cpu()
        tensors[f"{name}_tokens"] = ids_V[torch.cat([part.indices for part in parts]).cpu()]
    shown = set(torch.cat([tensors["top_tokens"], tensors["bottom_tokens"]]).flatten().tolist())
    return tensors, {str(number): texts[number].decode(errors="replace") for number in sorted(shown)}
