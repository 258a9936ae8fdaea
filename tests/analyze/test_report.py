import html.parser
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from analyze.activity import measure
from analyze.report.build import build
from analyze.report.formats import fact, flat, number, share
from harvest.errors import UserError
from tests.texts import Texts, make_store
from train.config import DictionarySpec
from train.loop import train
from train.run import Job

HOSTILE = [
    b"<script>alert(1)</script>",
    b"\"quoted' &amp;",
    "🤗".encode(),
    "\u202eright to left".encode(),
    b"\0",
    b"\n",
]


class Page(html.parser.HTMLParser):
    """What a browser would make of a page: its text, scripts, links and table cells."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.text = ""
        self.scripts: list[str] = []
        self.links: list[str] = []
        self.values: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        found = dict(attrs)
        self.tags.append((tag, found))
        self.links += [found[key] or "" for key in ("href", "src") if key in found]
        if "data-value" in found:
            self.values.append(found["data-value"] or "")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "script" in self.inside:
            self.scripts[-1] += data
        else:
            self.text += data


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A store of hostile text, two dictionaries trained on it, their measurements, and the report."""
    folder = tmp_path_factory.mktemp("results")
    documents = [HOSTILE * 3, HOSTILE[::-1] * 5] * 8
    source = Texts(documents, ["</script><script>alert(2)</script>", "<b>bold</b>"] * 8)
    store = make_store(source, folder / "harvest" / "hostile")
    common = {"latents": 8, "sparsity": {"topk": {"l0": 2}}, "tokens": 640, "batch": 32, "holdout": 0.1}
    kinds = {"sae": {"reads": ["in"]}, "transcoder": {"reads": ["in"], "writes": ["out"]}}
    train(
        [
            Job(DictionarySpec.model_validate(common | sites), folder / "train" / name, folder / "checkpoints" / name)
            for name, sites in kinds.items()
        ],
        store.path,
    )
    for name in kinds:
        measure(folder / "train" / name, store.path, folder / "analyze" / name)
    build_report(folder, folder / "report")
    return folder


def build_report(folder: pathlib.Path, output: pathlib.Path) -> None:
    names = ["sae", "transcoder"]
    dictionaries = [(name, folder / "analyze" / name, folder / "train" / name) for name in names]
    build("hostile", dictionaries, [folder / "harvest" / "hostile" / "activations.manifest.json"], output)


def pages(results: pathlib.Path) -> list[pathlib.Path]:
    return sorted((results / "report").rglob("*.html"))


def read(results: pathlib.Path, path: str) -> Any:
    return json.loads((results / path).read_text())


def test_the_index_has_the_figures_of_every_summary(results: pathlib.Path) -> None:
    page = Page(results / "report" / "index.html")
    for name in ("sae", "transcoder"):
        summary, training = read(results, f"analyze/{name}/summary.json"), read(results, f"train/{name}/training.json")
        wanted = [
            summary["held_out"]["explained_variance"],
            summary["whole"]["explained_variance"],
            summary["whole"]["l0"],
            training["spec"]["sparsity"]["topk"]["l0"],
            summary["whole"]["dead_share"],
            *(
                read(results, f"analyze/{name}/monosemanticity.json")["sets"]["language"]["mean"][f]
                for f in ("f1", "auc")
            ),
            read(results, f"analyze/{name}/monosemanticity.json")["token_purity"]["mean"],
            summary["latents"],
            training["last"]["tokens"],
            training["seconds"],
        ]
        cells = [float(value) for value in page.values]
        at = cells.index(wanted[0])
        assert cells[at : at + len(wanted)] == wanted
        assert f"{wanted[0]:.4f}" in page.text
    manifest = read(results, "harvest/hostile/activations.manifest.json")
    for site, facts in manifest["sites"].items():
        assert site in page.text
        assert number(facts["mean_norm"]) in page.text


def test_a_dictionary_page_has_its_figures_and_its_densest_latents(results: pathlib.Path) -> None:
    page = Page(results / "report" / "dictionaries" / "transcoder.html")
    summary = read(results, "analyze/transcoder/summary.json")
    for part in ("whole", "held_out"):
        for key in ("rows", "explained_variance", "l0", "dead_share"):
            assert summary[part][key] in [float(value) for value in page.values], (part, key)
    firing_F = load_file(results / "analyze/transcoder/latents.safetensors")["firing"]
    densest = [latent for latent in np.argsort(-firing_F, kind="stable")[:10].tolist() if firing_F[latent]]
    links = [link.partition("#")[2] for link in page.links if link.startswith("../features/transcoder.html#")]
    assert links[: len(densest)] == list(map(str, densest))
    for latent in densest:
        assert firing_F[latent] / summary["whole"]["rows"] in [float(value) for value in page.values]


def test_charts_draw_the_measurements(results: pathlib.Path) -> None:
    page = Page(results / "report" / "index.html")
    charts = [json.loads(script) for script in page.scripts if script.startswith("{")]
    by_axis = {chart["layout"]["yaxis"]["title"]["text"]: chart["data"] for chart in charts}
    lines = [json.loads(line) for line in (results / "train/sae/metrics.jsonl").read_text().splitlines()]
    assert by_axis["variance unexplained (share)"][0]["y"] == [line["reconstruction"] for line in lines]
    assert by_axis["variance unexplained (share)"][0]["x"] == [line["tokens"] for line in lines]
    density = read(results, "analyze/transcoder/summary.json")["density"]
    drawn = by_axis["latents in a quarter decade"][1]
    assert drawn["name"] == "transcoder"
    assert drawn["x"] == density["edges"]
    assert drawn["y"][:-1] == density["counts"]
    assert all(chart["layout"][axis]["title"]["text"] for chart in charts for axis in ("xaxis", "yaxis"))


def test_hostile_text_is_text(results: pathlib.Path) -> None:
    for path in pages(results):
        page = Page(path)
        assert not any("alert" in script for script in page.scripts), path
        assert all(
            found.get("src") or found.get("type") == "application/json" for t, found in page.tags if t == "script"
        )
        assert not any(name.startswith("on") for _, found in page.tags for name in found), path
        source = path.read_text(encoding="utf-8")
        assert "\0" not in source
        assert "\u202e" not in source
    page = Page(results / "report" / "index.html")
    assert ("b", {}) not in page.tags


def test_the_report_needs_nothing_but_its_folder(results: pathlib.Path) -> None:
    assert len(pages(results)) == 6
    for path in pages(results):
        page = Page(path)
        identifiers = {found.get("id") for _, found in page.tags}
        for link in page.links:
            file, _, fragment = link.partition("#")
            assert (path.parent / file).is_file() if file else fragment in identifiers, link
    for ours in (results / "report" / "static").glob("report.*"):
        assert "//" not in ours.read_text().replace("// ", ""), ours


def test_a_report_is_the_same_when_built_again(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    build_report(results, tmp_path)
    for path in pages(results):
        assert path.read_bytes() == (tmp_path / path.relative_to(results / "report")).read_bytes()


def test_a_missing_measurement_is_named(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/summary.json: cannot be read"):
        build("x", [("sae", tmp_path / "nowhere", results / "train" / "sae")], [], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_what_was_run_names_the_model_and_folds_what_was_left_out(
    results: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    harvest = tmp_path / "harvest" / "hostile"
    shutil.copytree(results / "harvest" / "hostile", harvest)
    left_out = ["<b>empty</b>: documents too short", "other: documents seen before"]
    (harvest / "corpus.json").write_text(json.dumps({"documents": 3, "left_out_names": left_out}))
    dictionaries = [("sae", results / "analyze" / "sae", results / "train" / "sae")]
    manifests = [harvest / "activations.manifest.json"]
    build("named", dictionaries, manifests, tmp_path / "report", models={"hostile": "<b>someone</b>/model"})
    page = Page(tmp_path / "report" / "index.html")
    assert "<b>someone</b>/model" in page.text
    assert "Left out: the first 2, by name" in page.text
    assert all(name in page.text for name in left_out)
    assert ("b", {}) not in page.tags


def test_a_dictionary_without_a_live_latent_has_a_page(results: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(results / "analyze" / "sae", tmp_path / "sae")
    tensors = load_file(tmp_path / "sae" / "latents.safetensors")
    save_file(tensors | {"firing": np.zeros_like(tensors["firing"])}, tmp_path / "sae" / "latents.safetensors")
    labels = load_file(tmp_path / "sae" / "labels.safetensors")
    none = {name: np.zeros_like(of) for name, of in labels.items() if not name.endswith("/rows")}
    save_file(labels | none, tmp_path / "sae" / "labels.safetensors")
    build("dead", [("sae", tmp_path / "sae", results / "train" / "sae")], [], tmp_path / "report")
    page = Page(tmp_path / "report" / "dictionaries" / "sae.html")
    assert "Browse all 8 latents" in page.text
    assert not [link for link in page.links if "#" in link]


def test_figures_read_well() -> None:
    assert [number(x) for x in (32.0, 69.8, 0.123456, 1234567.8, None)] == ["32", "69.80", "0.1235", "1,234,568", "–"]
    assert [share(x) for x in (0, 0.243, 0.00012345, None)] == ["0.0 %", "24.3 %", "0.012 %", "–"]
    assert flat({"a_b": {"c": [1, 2]}, "d": None}) == [("a b · c", [1, 2]), ("d", None)]
    assert [fact(x) for x in ("f" * 64, [1, 2], True, None, 15360)] == ["ffffffffffff…", "1, 2", "yes", "–", "15,360"]
