"""Text and image encoders, and mappings: every combination on small sizes."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import ray
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    GPT2Config,
    GPT2Model,
    HieraConfig,
    HieraModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SiglipConfig,
    SiglipModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from pipeline import Restorer
from pipeline.errors import ModelError
from pipeline.restoration import local
from pipeline.restoration.assembly import assemble
from pipeline.restoration.chain import Chain
from pipeline.restoration.config import ModelConfig
from pipeline.restoration.model import CompactModel
from pipeline.restoration.others import TiledModel
from pipeline.restoration.request import Request
from pipeline.restoration.text import MINILM, TransformersEncoder, minilm_folder, text_encoder, text_encoder_of
from tests.conftest import noise

CPU = torch.device("cpu")
SIZES = ModelConfig(
    text_tokens=8,
    thumbnail=64,
    probe=32,
    probes=1,
    encoder_widths=(16, 24, 32),
    width=32,
    fusion_layers=1,
    agreement_width=16,
    decoder_widths=(8, 16, 24, 32),
)
WORDS = ["a", "red", "dog", "dogs", "train", "museum", "old", "New"]
VOCABULARY = 30_522
"""Of MiniLM's tokenizer, which the small models borrow."""


def saved(model: PreTrainedModel, folder: Path, tokenizer: bool = True) -> Path:
    model.save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return saved(BertModel(BertConfig(vocab_size=VOCABULARY, **sizes)), folder)


def gpt2(folder: Path) -> Path:
    return saved(GPT2Model(GPT2Config(vocab_size=VOCABULARY, n_embd=24, n_layer=1, n_head=2, n_positions=16)), folder)


def clip(folder: Path) -> Path:
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, **sizes}
    vision = {"image_size": 32, "patch_size": 16, **sizes}
    return saved(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)), folder)


def t5(folder: Path) -> Path:
    config = T5Config(vocab_size=VOCABULARY, d_model=24, d_kv=12, d_ff=32, num_layers=1, num_heads=2)
    return saved(T5Model(config), folder)


def vectors(binary: bool, header: bool, folder: Path) -> Path:
    from gensim.models import KeyedVectors

    made = KeyedVectors(12)
    made.add_vectors(WORDS, np.random.default_rng(0).normal(0, 0.4, (len(WORDS), 12)).astype(np.float32))
    path = folder / ("vectors.bin" if binary else "vectors.txt")
    folder.mkdir(parents=True, exist_ok=True)
    made.save_word2vec_format(str(path), binary=binary, write_header=header)
    return path


TEXTS: dict[str, Any] = {
    "MiniLM": lambda folder: MINILM,
    "BERT": bert,
    "GPT-2": gpt2,
    "CLIP": clip,
    "T5": t5,
    "GloVe": functools.partial(vectors, False, False),
    "word2vec": functools.partial(vectors, True, True),
}


def resnet(folder: Path) -> Path:
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="basic")
    model = ResNetModel(config)
    for name, tensor in model.named_buffers():
        if "running" in name:
            tensor.uniform_(0.5, 2.0)
    return saved(model, folder, tokenizer=False)


def dinov2(folder: Path) -> Path:
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    return saved(Dinov2Model(Dinov2Config(**sizes)), folder, tokenizer=False)


def convnext(folder: Path) -> Path:
    config = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return saved(ConvNextModel(config), folder, tokenizer=False)


IMAGES: dict[str, Any] = {
    "compact": lambda folder: "compact",
    "resnet18": lambda folder: "resnet18",
    "ResNet": resnet,
    "DINOv2": dinov2,
    "ConvNeXt": convnext,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: str(make(root / name)) for name, make in (TEXTS | IMAGES).items()}


def assembled(places: dict[str, str], text: str, image: str, mapping: str, seed: int = 0) -> Restorer:
    model = assemble(places[text], places[image], mapping, seed, sizes=SIZES)
    with torch.no_grad():  # an untrained decoder ignores what it is told
        for name, parameter in model.named_parameters():
            if "modulate" in name or "attention.out" in name:
                parameter.normal_(std=0.2)
    return Restorer(model, device="cpu", tile=64, margin=8)


def requests() -> list[Request]:
    mask = np.zeros((40, 70), bool)
    mask[10:20, 10:40] = True
    reference = noise(50, 60, 5)
    return [
        Request(noise(40, 70, 1), caption="a red dog"),
        Request(noise(40, 70, 1), caption="old trains"),
        Request(noise(40, 70, 1)),
        Request(noise(40, 70, 1), caption="a red dog", mask=mask, only_mask=True),
        Request(noise(40, 70, 1), caption="a red dog", references=(reference,)),
    ]


PAIRS = [*((text, "compact") for text in TEXTS), *(("MiniLM", image) for image in IMAGES if image != "compact")]
QUICK = {("MiniLM", "compact"), ("word2vec", "compact"), ("MiniLM", "ResNet")}
"""Pairs of encoders that are always tried with both mappings; others with the graph network by the slow tests."""


@pytest.mark.parametrize(
    ("text", "image", "mapping"),
    [
        pytest.param(*pair, mapping, marks=pytest.mark.slow if mapping == "graph" and pair not in QUICK else ())
        for mapping in ("attention", "graph")
        for pair in PAIRS
    ],
)
def test_every_combination_restores(
    places: dict[str, str], tmp_path: Path, text: str, image: str, mapping: str
) -> None:
    restorer = assembled(places, text, image, mapping)
    asked = requests()
    results = [result.array for result in restorer.restore_batch(asked)]
    captioned, other, bare, masked, referenced = results
    assert all(array.shape == (40, 70, 3) and np.isfinite(array).all() for array in results)
    for one, another in ((captioned, other), (captioned, bare), (captioned, referenced)):
        assert np.abs(one - another).max() > 1e-4  # what was told is heard
    outside = ~asked[3].mask if asked[3].mask is not None else None
    assert np.array_equal(masked[outside], (asked[3].pixels / np.float32(255))[outside])
    again = restorer.restore_batch(asked[::-1])[::-1]
    assert all(np.array_equal(one, result.array) for one, result in zip(results, again, strict=True))
    restorer.save_pretrained(tmp_path / "model")
    loaded = Restorer.from_pretrained(tmp_path / "model", device="cpu", tile=64, margin=8)
    assert np.abs(loaded.restore_batch(asked[:1])[0].array - captioned).max() < 0.02  # weights in half precision
    model = pickle.loads(pickle.dumps(restorer._model))
    assert np.array_equal(Restorer(model, device="cpu", tile=64, margin=8).restore_batch(asked[:1])[0].array, captioned)


class Sharpen(TiledModel):
    """Stands for models of others, of any scale."""

    name, digest = "sharpen", "0"

    def __init__(self, scale: int = 1, fills: bool = False) -> None:
        super().__init__(CPU)
        self.scale, self.fills = scale, fills

    def forward(self, tiles: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        smooth = F.avg_pool2d(F.pad(tiles, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return F.interpolate(2 * tiles - smooth, scale_factor=float(self.scale), mode="nearest")


@pytest.mark.parametrize(
    ("text", "image", "mapping"), [("word2vec", "ResNet", "graph"), ("BERT", "compact", "attention")]
)
@pytest.mark.parametrize(("scale", "fills"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("repairs", [True, False])
def test_every_decoder_goes_with_every_encoder_and_mapping(
    places: dict[str, str], text: str, image: str, mapping: str, scale: int, fills: bool, repairs: bool
) -> None:
    chain = Chain(assembled(places, text, image, mapping), [Sharpen(scale, fills)], repairs)
    asked = requests()
    results = chain.restore_batch(asked)
    for request, result in zip(asked, results, strict=True):
        assert result.array.shape == (40, 70, 3) and np.isfinite(result.array).all()
        assert (result.enlarged is None) == (scale == 1)
        if result.enlarged is not None:
            assert result.enlarged.shape == (40 * scale, 70 * scale, 3)
        if request.mask is not None:
            assert np.array_equal(result.pixels[~request.mask], request.pixels[~request.mask])
    again = pickle.loads(pickle.dumps(chain)).restore_batch(asked[::-1])[::-1]
    assert all(np.array_equal(one.array, other.array) for one, other in zip(results, again, strict=True))


def test_models_go_through_ray(ray_session: None, places: dict[str, str]) -> None:
    restorer = assembled(places, "GloVe", "ResNet", "graph")
    (request, *_) = requests()

    @ray.remote
    def restored(model: CompactModel) -> np.ndarray:
        return Restorer(model, device="cpu", tile=64, margin=8).restore_batch([request])[0].array

    assert np.array_equal(ray.get(restored.remote(restorer._model)), restorer.restore_batch([request])[0].array)


def test_loaded_backbones_have_their_weights(places: dict[str, str]) -> None:
    one, other = (assemble(MINILM, places["ResNet"], seed=seed, sizes=SIZES).image_encoder for seed in (0, 1))
    picture = torch.rand(1, 3, 64, 64)
    theirs = ResNetModel.from_pretrained(places["ResNet"]).eval()
    wanted = theirs(picture, output_hidden_states=True).hidden_states[1:]
    for encoder in (one, other):
        maps = encoder.body.eval()(picture).feature_maps
        for found, expected in zip(maps, wanted, strict=True):
            assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("text", ["GPT-2", "CLIP", "T5", "BERT"])
def test_features_are_those_of_the_model_itself(places: dict[str, str], text: str) -> None:
    encoder = text_encoder(places[text], 8, CPU)
    assert isinstance(encoder, TransformersEncoder)
    features = encoder(["a red dog", "", "a very long caption about an old train and a museum and more"])
    tokenizer = AutoTokenizer.from_pretrained(places[text])
    model = {"GPT-2": GPT2Model, "CLIP": CLIPModel, "T5": T5Model, "BERT": BertModel}[text].from_pretrained(
        places[text]
    )
    tower = {"CLIP": lambda: model.text_model, "T5": lambda: model.encoder}.get(text, lambda: model)().eval()
    given = tokenizer("a red dog", return_tensors="pt")
    with torch.no_grad():
        wanted = tower(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state[0]
    count = len(wanted)
    assert torch.allclose(features.tokens[0, :count], wanted, atol=2e-3)
    assert features.absent[0].tolist() == [False] * count + [True] * (8 - count)
    assert features.absent[1].all() and not features.absent[2].any()


def test_words_are_found_in_other_forms_and_unknown_ones_count(places: dict[str, str]) -> None:
    for name in ("GloVe", "word2vec"):
        encoder = text_encoder(places[name], 8, CPU)

        def tokens(caption: str, encoder: Any = encoder) -> torch.Tensor:
            features = encoder([caption])
            return features.tokens[0][~features.absent[0]]

        assert torch.equal(tokens("A Red DOG!"), tokens("a red dog"))
        assert torch.equal(tokens("the museum's trains")[1:], tokens("museum train"))
        assert torch.equal(tokens("new"), tokens("New"))
        assert len(tokens("a zebra")) == 2 and torch.isfinite(tokens("a zebra")).all()
        assert len(tokens("zebras gallop")) == 0
        assert len(tokens("a dog " * 10)) == 8
        assert 0.8 < tokens(" ".join(WORDS)).std() < 1.2
    one, other = (text_encoder(places[name], 8, CPU)(["a red dog"]).tokens for name in ("GloVe", "word2vec"))
    assert torch.allclose(one, other, atol=1e-3)


def test_published_files_of_word_vectors_are_read_as_they_are(tmp_path: Path) -> None:
    """GloVe's largest file has words with spaces, word2vec's own program tears letters apart."""
    glove = tmp_path / "glove.840B.txt"
    glove.write_text("a 1 2 3\n. . . 4 5 6\nred 0.5 -1 2\nat name@domain.com 1 1 1\nred 9 9 9\n")
    encoder = text_encoder(str(glove), 8, CPU)
    assert encoder.width == 3 and not encoder(["red"]).absent[0, 0] and encoder(["name"]).absent.all()
    torn = tmp_path / "GoogleNews.BIN"
    numbers = np.arange(4, dtype=np.float32)
    torn.write_bytes(b"2 4\nred " + numbers.tobytes() + b"\ncaf\xc3 " + numbers[::-1].tobytes() + b"\n")
    assert not text_encoder(str(torn), 8, CPU)(["red"]).absent[0, 0]
    text = tmp_path / "torn.txt"
    text.write_bytes(b"2 2\nred 1 2\ncaf\xc3 3 4\n")
    assert not text_encoder(str(text), 8, CPU)(["red"]).absent[0, 0]


def test_encoders_are_loaded_as_they_are_published(tmp_path: Path) -> None:
    """Without the pooler that nothing needs, as an encoder alone, and with a tokenizer that gives no mask."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    masked = saved(BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes)), tmp_path / "masked")
    config = T5Config(vocab_size=VOCABULARY, d_model=24, d_kv=12, d_ff=32, num_layers=1, num_heads=2)
    half = saved(T5EncoderModel(config), tmp_path / "half")
    vision = {"image_size": 32, "patch_size": 16, **sizes}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 16, **sizes}
    siglip = saved(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)), tmp_path / "siglip")
    told = json.loads((siglip / "tokenizer_config.json").read_text())
    (siglip / "tokenizer_config.json").write_text(json.dumps(told | {"model_input_names": ["input_ids"]}))
    for folder in (masked, half, siglip):
        features = text_encoder(folder.as_uri(), 8, CPU)(["a red dog", "a"])
        assert features.tokens.shape == (2, 8, 24)
        assert features.absent.sum(1).tolist() == [3, 5]  # the tokenizer puts a token at either end


def test_a_decoder_without_padding_gets_some(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "gpt2")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told = {name: value for name, value in told.items() if name != "pad_token"} | {"eos_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told | {"pad_token": None}))
    encoder = text_encoder(str(folder), 8, CPU)
    assert encoder(["a red dog", "a"]).absent.sum(1).tolist() == [3, 5]


def test_a_file_that_is_torn_off_is_named(places: dict[str, str], tmp_path: Path) -> None:
    for name, load in (
        ("BERT", lambda place: text_encoder(place, 8, CPU)),
        ("ResNet", lambda place: assemble(MINILM, place, sizes=SIZES)),
    ):
        folder = tmp_path / name
        shutil.copytree(places[name], folder)
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match=name):
            load(str(folder))


def test_a_backbone_for_other_sizes_is_named(tmp_path: Path) -> None:
    config = HieraConfig(image_size=[96, 96], embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
    folder = saved(HieraModel(config), tmp_path / "hiera", tokenizer=False)
    with pytest.raises(ModelError, match="image encoder"):
        assemble(MINILM, str(folder), sizes=SIZES)


@pytest.mark.parametrize("content", ["", "no numbers here\n", "a 1 2 3\nb 1 2\n", "3 2\na 1 2\n"])
def test_a_file_without_word_vectors_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.txt"
    path.write_text(content)
    with pytest.raises(ModelError, match=r"broken\.txt"):
        text_encoder(str(path), 8, CPU)
    with pytest.raises(ModelError, match=r"missing\.bin"):
        text_encoder(str(tmp_path / "missing.bin"), 8, CPU)


def test_places_without_an_encoder_are_refused_by_name(tmp_path: Path, places: dict[str, str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for place in (str(empty), "nobody/has-this-model", f"memory://nowhere/{tmp_path.name}"):
        with pytest.raises(ModelError, match="text encoder"):
            text_encoder(place, 8, CPU)
        with pytest.raises(ModelError, match="image encoder"):
            assemble(MINILM, place, sizes=SIZES)
    (Path(places["BERT"]) / "model.safetensors").rename(empty / "aside")
    torch.save({}, Path(places["BERT"]) / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        text_encoder(places["BERT"], 8, CPU)
    (empty / "aside").rename(Path(places["BERT"]) / "model.safetensors")


def test_another_text_encoder_than_in_training_is_refused(places: dict[str, str], tmp_path: Path) -> None:
    assembled(places, "GloVe", "compact", "attention").save_pretrained(tmp_path / "model")
    moved = tmp_path / "moved.txt"
    moved.write_bytes(Path(places["GloVe"]).read_bytes())
    Restorer.from_pretrained(tmp_path / "model", device="cpu", text_encoder=str(moved))
    moved.write_text(moved.read_text().replace("red", "blue"))
    with pytest.raises(ModelError, match=r"restoration\.text_encoder"):
        Restorer.from_pretrained(tmp_path / "model", device="cpu", text_encoder=str(moved))


def test_weights_of_another_model_are_refused(places: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(places["BERT"], folder)
    save_file({"something.else": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="another model"):
        text_encoder(str(folder), 8, CPU)
    shutil.copytree(places["ResNet"], tmp_path / "backbone")
    save_file({"something.else": torch.zeros(3)}, tmp_path / "backbone/model.safetensors")
    with pytest.raises(ModelError, match="another model"):
        assemble(MINILM, str(tmp_path / "backbone"), sizes=SIZES)


def test_names_in_a_store_that_lead_elsewhere_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = fsspec.filesystem("memory")
    found = {"/evil/../../escaped": {"type": "file", "size": 1}}
    monkeypatch.setattr(type(store), "find", lambda *args, **more: found)
    with pytest.raises(ValueError, match="lead elsewhere"):
        local.local_copy("memory://evil")
    assert not list(tmp_path.rglob("escaped"))


def test_an_address_in_a_models_config_is_not_followed_unasked(tmp_path: Path) -> None:
    for place in (
        "https://example.com/vectors.bin",
        "s3://elsewhere/model",
        "hf://nobody/model",
        "ftp://example.com/x",
    ):
        with pytest.raises(ModelError, match="downloads"):
            text_encoder_of(dataclasses.replace(SIZES, text_encoder=place), CPU)


def test_a_config_with_another_mapping_is_refused(tmp_path: Path) -> None:
    dataclasses.replace(SIZES, mapping="guessing").save(tmp_path)
    with pytest.raises(ValueError, match="guessing"):
        ModelConfig.from_json((tmp_path / "config.json").read_text())


def test_what_lies_in_a_store_is_copied_once(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = fsspec.filesystem("memory")
    store.put(places["BERT"], "/models/bert", recursive=True)
    (name,) = [path for path in store.find("/models") if path.endswith("model.safetensors")]
    place = f"memory:/{name.removesuffix('/model.safetensors')}"
    first = text_encoder(place, 8, CPU)(["a dog"]).tokens
    assert torch.equal(first, text_encoder(places["BERT"], 8, CPU)(["a dog"]).tokens)
    monkeypatch.setattr(type(store), "get_file", lambda *args, **more: pytest.fail("copied again"))
    assert local.local_copy(place).is_dir()
