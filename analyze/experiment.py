"""The whole config: only the top floor knows models, harvests, dictionaries and reports together."""

import json
import pathlib
import re
from typing import Annotated, Any

import pydantic
from pydantic import Discriminator, Field, Tag

from analyze.variations import spread_variations
from harvest.bench.config import BenchSpec
from harvest.config import CorpusSpec, HarvestSpec, ImageCorpusSpec, ModelSpec, Name, Spec, check_spec, corpus_kind
from harvest.corpora.images import folders_of
from harvest.corpora.records import matching_files
from harvest.errors import UserError
from harvest.location import check_location
from train.config import DICTIONARY_FILES, SAME_IN_A_PASS, DictionarySpec, LoadSpec


class ModelHarvest(HarvestSpec):
    """A harvest of one of the experiment's models over one of its corpora."""

    model: Name
    corpus: Name


class BenchHarvest(Spec):
    """A harvest of the Linear Representation Bench."""

    bench: BenchSpec


Harvest = Annotated[
    Annotated[ModelHarvest, Tag("from a model")] | Annotated[BenchHarvest, Tag("from the bench")],
    Discriminator(lambda value: "from the bench" if isinstance(value, dict) and "bench" in value else "from a model"),
]

Corpus = Annotated[
    Annotated[CorpusSpec, Tag("of text")] | Annotated[ImageCorpusSpec, Tag("of images")],
    Discriminator(lambda value: "of images" if corpus_kind(value) is ImageCorpusSpec else "of text"),
]


class OfHarvests(Spec):
    """What a dictionary's sites are of."""

    harvest: Name | list[Name]
    """Several must have the same rows, as two models have that read one corpus: sites are then `<harvest>/<site>`."""

    embedding: str | None = None
    """The site that rows are compared by for the MonoSemanticity score (Pach et al. 2025), which should know nothing of
    the dictionary: one that it does not read, or `<harvest>/<site>` of another harvest with the same rows."""

    @pydantic.field_validator("harvest")
    @classmethod
    def _are_different(cls, harvest: str | list[str]) -> str | list[str]:
        if isinstance(harvest, list) and (not harvest or len(set(harvest)) < len(harvest)):
            raise ValueError("give one harvest, or several different ones")
        return harvest

    @property
    def harvests(self) -> list[str]:
        return [self.harvest] if isinstance(self.harvest, str) else self.harvest

    @property
    def compared_in(self) -> tuple[str, str] | None:
        """The harvest and the site of `embedding`."""
        if self.embedding is None:
            return None
        harvest, slash, site = self.embedding.partition("/")
        return (harvest, site) if slash else (self.harvests[0], self.embedding)


class TrainedDictionary(OfHarvests, DictionarySpec):
    """A dictionary of one of the experiment's harvests."""

    together: Name | None = None
    """Dictionaries that say the same name here are trained in one pass over their store, each as if alone."""


class LoadedDictionary(OfHarvests, LoadSpec):
    """A dictionary from elsewhere, for the rows of one of the experiment's harvests."""


Dictionary = Annotated[
    Annotated[TrainedDictionary, Tag("trained here")] | Annotated[LoadedDictionary, Tag("from elsewhere")],
    Discriminator(lambda value: "from elsewhere" if isinstance(value, dict) and "load" in value else "trained here"),
]


class Experiment(Spec):
    """One config file: what flows from which model into which dictionaries."""

    name: Name
    models: dict[Name, ModelSpec] = Field(default_factory=dict)
    corpora: dict[Name, Corpus] = Field(default_factory=dict)
    harvests: dict[Name, Harvest] = Field(min_length=1)
    dictionaries: dict[Name, Dictionary] = Field(min_length=1)
    stores: str | None = None
    """Where stores go: a folder, or a URL such as `s3://bucket/prefix`. Unless given, they are beside the results."""
    dask: Annotated[str, Field(pattern=r"^(tcp|tls|ucx|ws|wss)://\S+$")] | None = None
    """The address of a Dask scheduler, such as `tcp://10.0.0.1:8786`, that passes over a store run on. Its workers must
    see the same files. Without it they run where their job does."""

    @pydantic.field_validator("stores")
    @classmethod
    def _can_be_used(cls, stores: str | None) -> str | None:
        return None if stores is None else str(check_location(stores, "stores"))

    @pydantic.model_validator(mode="after")
    def _names_exist(self) -> "Experiment":
        for name, harvest in self.harvests.items():
            if isinstance(harvest, ModelHarvest):
                _known(f"harvests.{name}.model", harvest.model, self.models)
                _known(f"harvests.{name}.corpus", harvest.corpus, self.corpora)
        for name, dictionary in self.dictionaries.items():
            for source in dictionary.harvests:
                _known(f"dictionaries.{name}.harvest", source, self.harvests)
                if len(dictionary.harvests) > 1 and source in self.bench_harvests:
                    raise ValueError(
                        f"dictionaries.{name}.harvest: {source}: a harvest of the bench is read alone; "
                        "it may have many sites itself"
                    )
            _check_sites(f"dictionaries.{name}", dictionary)
            _check_embedding(f"dictionaries.{name}.embedding", dictionary, self.harvests)
        return self

    @pydantic.model_validator(mode="after")
    def _passes_share_what_they_must(self) -> "Experiment":
        for first, *others in self.passes.values():
            for name in others:
                for key in ("harvest", *SAME_IN_A_PASS):
                    ours, theirs = (getattr(self.trained[n], key) for n in (first, name))
                    if ours != theirs:
                        raise ValueError(
                            f"dictionaries.{name}.{key}: {theirs}: trained together with {first}, which has {ours}; "
                            "give both the same, or no together"
                        )
        return self

    @property
    def trained(self) -> dict[str, TrainedDictionary]:
        return {name: spec for name, spec in self.dictionaries.items() if isinstance(spec, TrainedDictionary)}

    @property
    def loaded(self) -> dict[str, LoadedDictionary]:
        return {name: spec for name, spec in self.dictionaries.items() if isinstance(spec, LoadedDictionary)}

    @property
    def passes(self) -> dict[str, list[str]]:
        """Dictionaries that are trained together, by the name that they share."""
        found: dict[str, list[str]] = {}
        for name, spec in self.trained.items():
            if spec.together is not None:
                found.setdefault(spec.together, []).append(name)
        return found

    @property
    def trained_alone(self) -> list[str]:
        return [name for name, spec in self.trained.items() if spec.together is None]

    @property
    def model_harvests(self) -> dict[str, ModelHarvest]:
        return {name: spec for name, spec in self.harvests.items() if isinstance(spec, ModelHarvest)}

    @property
    def bench_harvests(self) -> dict[str, BenchHarvest]:
        return {name: spec for name, spec in self.harvests.items() if isinstance(spec, BenchHarvest)}

    def model_of(self, harvest: str) -> str:
        return self.model_harvests[harvest].model

    def model_name(self, harvest: str) -> str:
        """What a report calls a harvest's model."""
        spec = self.models[self.model_of(harvest)]
        return spec.id if spec.pretrained is None else f"{spec.id}, {spec.pretrained}"

    # Each rule gets its own part of the config and no more, so that an edit reruns only what it touches.

    def model_source_text(self, model: str) -> str:
        return _text(self.models[model])

    def model_text(self, model: str, directory: str | None) -> str:
        """A model's spec, read from `directory` where it was made there."""
        spec = self.models[model]
        return _text(ModelSpec(id=directory, dtype=spec.dtype) if directory else spec)

    def corpus_text(self, harvest: str) -> str:
        return _text(self.corpora[self.model_harvests[harvest].corpus])

    def corpus_files(self, harvest: str) -> list[str]:
        """What a corpus is read from on this machine: where it changes, the corpus is made again."""
        corpus = self.corpora[self.model_harvests[harvest].corpus]
        if isinstance(corpus, ImageCorpusSpec):
            patterns = corpus.files or []
            folders = folders_of(corpus)
        else:
            patterns, folders = [*(corpus.files or []), *corpus.lexicons.values()], []
        return folders + [str(path) for pattern in patterns for path in matching_files(pattern)]

    def harvest_text(self, harvest: str) -> str:
        spec = self.harvests[harvest]
        return _text(spec.bench if isinstance(spec, BenchHarvest) else spec, exclude={"model", "corpus"})

    @property
    def anchored(self) -> list[str]:
        """Dictionaries whose latents are held to known directions."""
        return [name for name, spec in self.trained.items() if spec.anchors is not None]

    @property
    def with_truth(self) -> list[str]:
        """Dictionaries that can be compared with a ground truth."""
        return [name for name, spec in self.dictionaries.items() if spec.harvests[0] in self.bench_harvests]

    def dictionary_text(self, dictionary: str) -> str:
        return _text(self.dictionaries[dictionary], exclude={"harvest", "together", "embedding"})

    def lens_harvest(self, dictionary: str) -> str | None:
        """The harvest of the site that is written last, where it is a model's of text: its tokens can be read there."""
        spec = self.dictionaries[dictionary]
        harvest = spec.written[-1].partition("/")[0] if len(spec.harvests) > 1 else spec.harvests[0]
        found = self.model_harvests.get(harvest)
        return harvest if found and isinstance(self.corpora[found.corpus], CorpusSpec) else None

    @property
    def of_text(self) -> list[str]:
        """Dictionaries of text models."""
        return [name for name in self.dictionaries if self.lens_harvest(name)]

    @property
    def of_images(self) -> list[str]:
        """Harvests of images."""
        return [n for n, h in self.model_harvests.items() if isinstance(self.corpora[h.corpus], ImageCorpusSpec)]

    def loaded_files(self, dictionary: str) -> list[str]:
        """What a dictionary from elsewhere is read from, where that is on this machine."""
        directory = pathlib.Path(self.loaded[dictionary].load).expanduser()
        return [str(file) for name in DICTIONARY_FILES if (file := directory / name).exists()]


def load_experiment(config: dict[str, Any], config_file: str) -> Experiment:
    """Check a config as Snakemake read it. `model`, from the command line, replaces the experiment's one model.

    The experiment is called after its config file, and after the model where that was replaced. Keys that begin with
    `x-` are the file's own, to hold what its YAML aliases repeat.
    """
    values = {key: value for key, value in json.loads(json.dumps(config)).items() if not key.startswith("x-")}
    name = values.setdefault("name", pathlib.Path(config_file).stem)
    if (model := values.pop("model", None)) is not None:
        if len(values.get("models", {})) != 1:
            raise UserError(
                f"model: {model}: this config has {len(values.get('models', {}))} models, not one to replace"
            )
        values["models"] = {next(iter(values["models"])): {"id": model}}
        values["name"] = f"{name}-{re.sub(r'[^A-Za-z0-9._-]+', '-', str(model).rstrip('/').split('/')[-1])}"
    return check_spec(spread_variations(values), Experiment)


def _check_sites(key: str, dictionary: TrainedDictionary | LoadedDictionary) -> None:
    """With several harvests a site says whose it is."""
    several = len(dictionary.harvests) > 1
    for site in [*dictionary.reads, *dictionary.written]:
        harvest, slash, _ = site.partition("/")
        if bool(slash) != several or (several and harvest not in dictionary.harvests):
            wanted = " or ".join(f"{name}/<site>" for name in dictionary.harvests) if several else "<site>"
            raise ValueError(f"{key}: {site}: a site of {', '.join(dictionary.harvests)} is written {wanted}")


def _check_embedding(key: str, dictionary: TrainedDictionary | LoadedDictionary, harvests: dict[str, Any]) -> None:
    if dictionary.compared_in is None:
        return
    harvest, site = dictionary.compared_in
    if len(dictionary.harvests) > 1 and "/" not in str(dictionary.embedding):
        raise ValueError(f"{key}: {site}: of several harvests; write <harvest>/{site}")
    _known(key, harvest, harvests)
    if {site, f"{harvest}/{site}"} & set(dictionary.reads) and harvest in dictionary.harvests:
        raise ValueError(f"{key}: {dictionary.embedding}: the dictionary reads it; name a site that it does not")


def _text(spec: Spec, exclude: set[str] | None = None) -> str:
    return json.dumps(spec.model_dump(mode="json", exclude_defaults=True, exclude=exclude))


def _known(key: str, name: str, there: dict[str, Any]) -> None:
    if name not in there:
        raise ValueError(f"{key}: {name}: no such name; there are {', '.join(there) or 'none'}")
