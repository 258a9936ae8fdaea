"""The feature browser's files: every figure as it was measured, hostile text harmless, what is missing left out."""

import csv
import gzip
import json
import math
import pathlib
import re
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from analyze.examples import PACK
from analyze.report.browser import write_browser
from analyze.report.browser_packs import base_32768, character
from analyze.report.formats import visible
from harvest.errors import UserError
from tests.report_data import ANCHORS, DICTIONARIES, GRID, SETS, VOCABULARY, write_results

LATENTS = 264
HELD = {"held_out": 2_000, "whole": 20_000}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = write_results(tmp_path_factory.mktemp("results"), LATENTS)
    for name in DICTIONARIES:
        browse(folder, name, folder / "report")
    return folder


def browse(results: pathlib.Path, name: str, output: pathlib.Path) -> None:
    write_browser(name, results / "analyze" / name, results / "train" / name, output, DICTIONARIES, "tiny")


def called(path: pathlib.Path) -> tuple[str, list[Any]]:
    """The function that a script calls, and with what."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    match = re.fullmatch(r"(\w+)\((.*)\);\n", text)
    assert match, path
    return match[1], json.loads(f"[{match[2]}]")


def index_of(results: pathlib.Path, name: str) -> dict[str, Any]:
    function, (index,) = called(results / "report/features" / name / "index.js")
    assert function == "latentIndex"
    found: dict[str, Any] = index
    return found


def pack_of(results: pathlib.Path, name: str, number: int) -> dict[str, Any]:
    function, (of, which, text) = called(results / "report/features" / name / "packs" / f"{number}.js")
    assert (function, of, which) == ("latentPack", name, number)
    found: dict[str, Any] = json.loads(gzip.decompress(from_base_32768(text)))
    return found


def from_base_32768(text: str) -> bytes:
    """As the page reads it."""
    bits = "".join(f"{ord(each) - 0x3400:015b}" for each in text[1:])
    data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return data[: len(data) - (ord(text[0]) - 0x3400)]


def measured(results: pathlib.Path, name: str, file: str) -> dict[str, np.ndarray]:
    return dict(load_file(results / "analyze" / name / f"{file}.safetensors"))


def examples_of(results: pathlib.Path, name: str, pack: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        gzip.decompress((results / "analyze" / name / "examples" / f"{pack}.json.gz").read_bytes())
    )
    return found


def short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


@pytest.mark.parametrize("name", ["sae", "patches"])
def test_the_index_has_every_figure_as_it_was_measured(results: pathlib.Path, name: str) -> None:
    latents, figures, geometry = (measured(results, name, f) for f in ("latents", "monosemanticity", "geometry"))
    wanted = {
        "rate": latents["firing"] / HELD["whole"],
        "rate_held_out": latents["firing_held_out"] / HELD["held_out"],
        "mean": latents["mean_activation"],
        "max": latents["max_activation"],
        "encoder_decoder_cosine": geometry["encoder_decoder_cosine"],
        **{key: values for key, values in figures.items() if not key.endswith("best_label")},
    }
    index = index_of(results, name)
    assert {figure["key"] for figure in index["figures"]} == set(wanted)
    for figure in index["figures"]:
        assert figure["values"] == [short(value) for value in wanted[figure["key"]].tolist()], figure["key"]
        assert figure["definition"].endswith(".")
        assert figure["set"] == (figure["key"].split("/")[0] if "/" in figure["key"] else None)
    assert index["bestLabels"] == {name: figures[f"{name}/best_label"].tolist() for name in SETS}
    assert index["sets"] == {name: [visible(label) for label in labels] for name, labels in SETS.items()}


def test_packs_hold_every_example_of_every_latent(results: pathlib.Path) -> None:
    for number in range(2):
        pack, given = pack_of(results, "sae", number), examples_of(results, "sae", number)
        assert list(pack["latents"]) == [str(each) for each in range(number * PACK, min(LATENTS, (number + 1) * PACK))]
        numbered = {character(place): text for place, text in enumerate(pack["texts"])}
        for latent, found in pack["latents"].items():
            wanted = given["latents"].get(latent, {"top": [], "quantiles": []})
            assert found["groups"] == [len(wanted["top"]), *map(len, wanted["quantiles"])]
            columns = found["examples"]
            for place, example in enumerate(wanted["top"]):
                assert columns["row"][place] == example["row"]
                assert columns["activation"][place] == example["activation"]
                texts = [numbered[each] for each in columns["tokens"][place]]
                assert texts == [visible(given["texts"][token]) for token in example["tokens"]]
                around = columns["around"][place]
                activations = dict(zip(around[::2], around[1::2], strict=True))
                activations[columns["peak"][place]] = example["activations"][example["peak"]]
                assert activations == {i: a for i, a in enumerate(example["activations"]) if a}
                labels = dict(zip(SETS, columns["labels"][place], strict=True))
                assert {name: SETS[name][label] for name, label in labels.items()} == example["labels"]
            in_groups = [example for group in wanted["quantiles"] for example in group]
            for place, example in enumerate(in_groups, len(wanted["top"])):
                tokens, peak = columns["tokens"][place], columns["peak"][place]
                assert numbered[tokens[peak]] == visible(given["texts"][example["tokens"][example["peak"]]])
                assert len(tokens) <= len(example["tokens"])
                assert columns["activation"][place] == example["activation"]


def test_packs_hold_labels_lens_and_links(results: pathlib.Path) -> None:
    latents, labels, geometry = (measured(results, "sae", f) for f in ("latents", "labels", "geometry"))
    found = pack_of(results, "sae", 0)["latents"]["7"]
    assert found["histogram"] == latents["histogram"][7].tolist()
    fired, mass = latents["firing"][7], latents["firing"][7] * latents["mean_activation"][7]
    rows = {label: figures for label, *figures in found["labels"]["topic"]}
    assert next(iter(rows)) == labels["topic/sum"][7].argmax()
    for label, figures in rows.items():
        both = labels["topic/firing"][7, label]
        wanted = [labels["topic/sum"][7, label] / mass, both / fired, both / labels["topic/rows"][label]]
        assert figures == [short(float(value)) for value in wanted]
    for side in ("top", "bottom"):
        tokens, logits = geometry[f"{side}_tokens"][7].tolist(), geometry[f"{side}_logits"][7].tolist()
        wanted_lens = [[visible(VOCABULARY[t]), short(v)] for t, v in zip(tokens, logits, strict=True)]
        assert found["lens"][side] == wanted_lens
    assert [latent for latent, _ in found["neighbours"]] == geometry["neighbours"][7].tolist()
    assert [cosine for _, cosine in found["neighbours"]] == [
        short(v) for v in geometry["neighbour_cosines"][7].tolist()
    ]
    jaccard, phi = (latents[f"cofiring_{figure}"][7].tolist() for figure in ("jaccard", "correlation"))
    linked = zip(latents["cofiring_latents"][7].tolist(), jaccard, phi, strict=True)
    assert found["cofiring"] == [[latent, short(one), short(other)] for latent, one, other in linked]
    nearest = geometry["language/nearest_labels"][7].tolist()
    assert [label for label, _ in found["nearest"]["language"]] == nearest


def test_heat_is_a_share_of_the_largest_activation(results: pathlib.Path) -> None:
    pack, given = pack_of(results, "patches", 0), examples_of(results, "patches", 0)
    largest = measured(results, "patches", "latents")["max_activation"]
    for latent in ("1", "9"):
        columns = pack["latents"][latent]["examples"]
        for heat, patch, example in zip(
            columns["heat"], columns["patch"], given["latents"][latent]["top"], strict=False
        ):
            shades = [int(each, 32) for each in heat]
            assert len(shades) == GRID[0] * GRID[1]
            assert shades == [min(31, math.ceil(31 * each / float(largest[int(latent)]))) for each in example["heat"]]
            assert patch == example["patch"]
    folder = results / "report/features/patches/images"
    assert (folder / "3.jpg").read_bytes() == (results / "analyze/patches/images/3.jpg").read_bytes()
    index = index_of(results, "patches")
    assert index["topImages"][0] is None
    assert index["topImages"][9] == given["latents"]["9"]["top"][0]["image"]


def test_a_search_finds_the_tokens_that_latents_peak_at(results: pathlib.Path) -> None:
    function, (name, peaks) = called(results / "report/features/sae/search.js")
    assert (function, name) == ("latentTokens", "sae")
    for latent in range(2, LATENTS):
        wanted = visible(VOCABULARY[(latent - 2) % len(VOCABULARY)])
        assert [peaks["texts"][text] for text in peaks["of"][latent]] == [wanted]
    assert peaks["of"][0] == []


def test_any_two_dictionaries_are_shown_by_best_match(results: pathlib.Path) -> None:
    for one, other in (("sae", "sae-anchored"), ("sae-anchored", "sae")):
        index = index_of(results, one)
        assert index["matched"] == [other]
        assert index["others"] == [name for name in DICTIONARIES if name != one]
        function, arguments = called(results / "report/features" / one / "with" / f"{other}.js")
        match = load_file(results / "stability" / f"{one}--{other}.safetensors")
        cosines = [short(value) for value in match["cosine"].tolist()]
        assert (function, arguments) == ("latentMatch", [one, other, match["partner"].tolist(), cosines])


def test_anchored_latents_have_their_anchors_names(results: pathlib.Path) -> None:
    assert index_of(results, "sae-anchored")["anchors"] == ANCHORS
    assert index_of(results, "sae")["anchors"] == []


def test_what_was_not_measured_is_left_out(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    index = index_of(results, "bare")
    assert [figure["key"] for figure in index["figures"]] == ["rate", "rate_held_out", "mean", "max"]
    found = pack_of(results, "bare", 0)["latents"]["5"]
    assert (found["lens"], found["neighbours"], found["cofiring"], found["labels"]) == (None, [], [], {})
    shutil.copytree(results / "analyze/bare", tmp_path / "analyze/bare")
    shutil.rmtree(tmp_path / "analyze/bare/examples")
    write_browser("bare", tmp_path / "analyze/bare", results / "train/bare", tmp_path / "report")
    assert pack_of(tmp_path, "bare", 0)["latents"]["5"]["examples"] == {"row": [], "activation": [], "labels": []}


def test_a_broken_measurement_is_named(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(results / "analyze/sae", tmp_path / "sae")
    (tmp_path / "sae/examples/1.json.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"examples/1.json.gz: cannot be read"):
        write_browser("sae", tmp_path / "sae", results / "train/sae", tmp_path / "report")
    (tmp_path / "sae/geometry.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"geometry.safetensors: cannot be read"):
        write_browser("sae", tmp_path / "sae", results / "train/sae", tmp_path / "report")


def test_no_text_can_end_a_script_or_turn_what_is_around_it(results: pathlib.Path) -> None:
    scripts = [path for path in (results / "report/features").rglob("*.js") if path.parent.name != "packs"]
    assert len(scripts) == 2 * len(DICTIONARIES) + 2
    for path in scripts:
        text = path.read_text(encoding="utf-8")
        assert not set("<\0\u202e\u2028\u2029") & set(text), path
    texts = pack_of(results, "sae", 0)["texts"]
    assert set(texts) == {visible(text) for text in VOCABULARY}
    assert not set("\0\u202e\u2028\n\t") & set("".join(texts))


def test_a_page_names_its_dictionary_and_links_what_exists(tmp_path: pathlib.Path) -> None:
    hostile = "<b>&\"'#?%"
    results = write_results(tmp_path, 20, ("bare",))
    for part in ("analyze", "train"):
        shutil.copytree(results / part / "bare", results / part / hostile)
    write_browser(hostile, results / "analyze" / hostile, results / "train" / hostile, results / "report", [hostile])
    page = (results / "report/features" / f"{hostile}.html").read_text()
    assert "<b>" not in page.replace("&lt;b&gt;", "")
    assert 'href="%3Cb%3E%26%22%27%23%3F%25/latents.csv"' in page


def test_the_table_has_every_figure_in_full(results: pathlib.Path) -> None:
    with (results / "report/features/sae-anchored/latents.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == LATENTS
    assert [line["anchor"] for line in lines[:3]] == [*ANCHORS, ""]
    for file_name in ("latents", "monosemanticity", "geometry"):
        for key, tensor in measured(results, "sae-anchored", file_name).items():
            if tensor.shape == (LATENTS,) and not key.endswith("best_label"):
                cells = np.array([float(line[key] or "nan") for line in lines]).astype(tensor.dtype)
                np.testing.assert_array_equal(cells, tensor, key)
    best = measured(results, "sae-anchored", "monosemanticity")["language/best_label"]
    assert [line["language/best_label"] for line in lines] == [SETS["language"][label] for label in best]


def test_features_are_in_the_shape_of_neuronpedia(results: pathlib.Path) -> None:
    batch = json.loads(gzip.decompress((results / "report/features/sae/neuronpedia.json.gz").read_bytes()))
    assert batch["sae_set"] == "sae"
    latents, geometry = measured(results, "sae", "latents"), measured(results, "sae", "geometry")
    assert [f["feature_index"] for f in batch["features"]] == np.flatnonzero(latents["firing"]).tolist()
    feature = next(f for f in batch["features"] if f["feature_index"] == 260)
    assert feature["frac_nonzero"] == latents["firing"][260] / HELD["whole"]
    assert sum(feature["freq_hist_data_bar_heights"]) == latents["firing"][260]
    assert len(feature["freq_hist_data_bar_heights"]) == len(feature["freq_hist_data_bar_values"])
    assert feature["pos_str"] == [VOCABULARY[token] for token in geometry["top_tokens"][260]]
    assert feature["neg_values"] == [short(value) for value in geometry["bottom_logits"][260].tolist()]
    assert feature["correlated_features_indices"] == latents["cofiring_latents"][260].tolist()
    given = examples_of(results, "sae", 1)
    for activation, example in zip(feature["activations"], given["latents"]["260"]["top"], strict=True):
        assert activation["tokens"] == [given["texts"][token] for token in example["tokens"]]
        assert activation["values"] == example["activations"]
        assert activation["qualifying_token_index"] == example["peak"]


def test_the_browser_is_the_same_when_written_again(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    browse(results, "patches", tmp_path)
    for path in filter(pathlib.Path.is_file, tmp_path.rglob("*")):
        assert path.read_bytes() == (results / "report" / path.relative_to(tmp_path)).read_bytes(), path


@pytest.mark.parametrize("size", [0, 1, 14, 15, 16, 1_000])
def test_fifteen_bits_a_character(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    text = base_32768(data)
    assert from_base_32768(text) == data
    assert len(text) == 1 + 8 * -(-size // 15)


def test_no_character_is_a_surrogate() -> None:
    assert character(0) == "]"
    characters = [character(place) for place in range(70_000)]
    assert len(set(characters)) == 70_000
    assert "".join(characters).encode().decode() == "".join(characters)
