"""Everything that can be wrong with a hub id or a folder is one clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import tiny_models
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertModel, CLIPModel
from transformers.utils import logging

from vlmae.backbones import pretrained
from vlmae.backbones.pretrained import (
    find_file,
    identity_of,
    licence_of,
    load_config,
    load_model,
    load_processor,
    processor_sha256,
)

HUB_ID = "nobody/no-such-model"
QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return tiny_models.bert(tmp_path / "bert")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_weights_are_those_of_the_folder(bert: Path) -> None:
    model = load_model(BertModel, str(bert))
    saved = load_file(bert / "model.safetensors")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[name])
    half = load_model(AutoModel, str(bert), dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.state_dict()[QUERY], saved[QUERY].bfloat16())


def test_what_can_be_unused_may_be_absent(bert: Path) -> None:
    rewrite(bert, lambda tensors: [tensors.pop(f"pooler.dense.{n}") for n in ("weight", "bias")])
    with pytest.raises(ValueError, match=r"lack 2 tensors of BertModel, first pooler\.dense\.bias"):
        load_model(BertModel, str(bert))
    assert load_model(BertModel, str(bert), absent=["pooler."])
    assert load_model(BertModel, str(bert), add_pooling_layer=False).pooler is None


def test_missing_and_misshapen_tensors_are_refused(bert: Path) -> None:
    rewrite(bert, lambda tensors: tensors.update({QUERY: tensors[QUERY][:3].clone()}))
    with pytest.raises(ValueError, match=r"do not fit BertModel or are damaged.*save them again"):
        load_model(BertModel, str(bert))
    rewrite(bert, lambda tensors: tensors.pop(QUERY))
    with pytest.raises(ValueError, match=rf"lack 1 tensors of BertModel, first {QUERY}.*random"):
        load_model(BertModel, str(bert))
    with pytest.raises(ValueError, match=r"lack \d+ tensors of CLIPModel, first logit_scale"):
        load_model(CLIPModel, str(bert))
    (bert / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match=r"'.*bert' do not fit BertModel or are damaged"):
        load_model(BertModel, str(bert))
    (bert / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"bert' has no usable weights.*save_pretrained"):
        load_model(BertModel, str(bert))


def test_configurations_that_cannot_be_read_are_refused(bert: Path) -> None:
    path = bert / "config.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"bert' has no usable configuration.*not a valid JSON"):
        load_config(str(bert))
    path.write_text(json.dumps({"model_type": "no-such-family"}))
    with pytest.raises(ValueError, match=r"config.json of .*bert' cannot be read.*no-such-family"):
        load_config(str(bert))
    path.unlink()
    with pytest.raises(ValueError, match=r"bert' has no config\.json.*save_pretrained"):
        load_config(str(bert))
    with pytest.raises(ValueError, match=r"there is no folder '/no/such/folder'"):
        load_config("/no/such/folder")
    with pytest.raises(ValueError, match=r"there is no folder '\./bert'"):
        load_config("./bert")
    with pytest.raises(ValueError, match=r"'a b/c' is neither a folder nor a hub id"):
        load_config("a b/c")


def test_another_modality_is_refused_with_the_families_that_fit(bert: Path) -> None:
    config = load_config(str(bert), families=("bert", "roberta"), role="a text encoder")
    assert config.hidden_size == tiny_models.TEXT_WIDTH
    with pytest.raises(
        ValueError, match=r"bert' is of the family 'bert' and cannot be an audio encoder: .* wavlm"
    ):
        load_config(str(bert), families=("wavlm",), role="an audio encoder")


def test_processors_that_are_not_there_are_refused(bert: Path) -> None:
    assert load_processor(AutoTokenizer, str(bert))("the cat")["input_ids"] == [2, 57, 58, 3]
    with pytest.raises(ValueError, match=r"bert' has no usable processor files.*preprocessor_conf"):
        load_processor(AutoImageProcessor, str(bert))
    # transformers would make a tokenizer of special tokens alone.
    (bert / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"bert' has no vocabulary \(tokenizer\.json, vocab\.txt"):
        load_processor(AutoTokenizer, str(bert))
    (bert / "config.json").unlink()
    (bert / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match=r"bert'.*processor"):
        load_processor(AutoTokenizer, str(bert))


def test_without_a_network_the_remedy_is_named() -> None:
    """In a process of its own: the hub's client reads its settings when it is imported."""
    script = f"""
from transformers import AutoModel, AutoTokenizer
from vlmae.backbones.pretrained import load_config, load_model, load_processor
for load in (
    lambda: load_config({HUB_ID!r}),
    lambda: load_model(AutoModel, {HUB_ID!r}, "v2"),
    lambda: load_processor(AutoTokenizer, {HUB_ID!r}),
):
    try:
        load()
    except ValueError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 3, done.stderr
    for line, what in zip(lines, ("configuration", "weights", "processor files"), strict=True):
        assert line.startswith(f"cannot get the {what} of '{HUB_ID}'")
        assert "give a local folder, or download it first on a machine with network" in line
        assert f"`hf download {HUB_ID}" in line
    assert lines[1].endswith("--revision v2`")


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (RepositoryNotFoundError, "the hub has no model 'nobody/no-such-model'.*correct the id"),
        (RevisionNotFoundError, "has no revision 'v9': name a branch, tag or commit"),
        (GatedRepoError, "is gated: accept its terms.*hf auth login"),
        (httpx.ConnectError, "hub cannot be reached.*hf download nobody/no-such-model --rev"),
    ],
)
def test_answers_of_the_hub_are_told_apart(
    cause: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **settings: object) -> None:
        # transformers wraps what the hub says, and most of it is in the cause alone.
        try:
            request = httpx.Request("GET", "http://hub.invalid")
            if cause is httpx.ConnectError:
                raise httpx.ConnectError("no route", request=request)
            raise cause("refused", response=httpx.Response(404, request=request))  # type: ignore[call-arg]
        except Exception as error:
            raise OSError("cannot load it") from error

    monkeypatch.setattr(pretrained.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ValueError, match=message):
        load_config(HUB_ID, "v9")


def test_other_errors_are_not_hidden(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **settings: object) -> None:
        raise AttributeError("a fault of the code")

    monkeypatch.setattr(AutoModel, "from_pretrained", broken)
    with pytest.raises(AttributeError, match="a fault of the code"):
        load_model(AutoModel, str(bert))


def test_identity_is_the_folders_name_or_the_commit(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert identity_of(str(bert)) == ("bert", "local")
    assert identity_of(f"{bert}/") == ("bert", "local")
    monkeypatch.chdir(bert)
    assert identity_of(".") == ("bert", "local")
    config = load_config(str(bert))
    assert identity_of(HUB_ID, None, config) == (HUB_ID, "main")
    assert identity_of(HUB_ID, "v2", config) == (HUB_ID, "v2")
    config._commit_hash = "c0ffee"
    assert identity_of(HUB_ID, "v2", config) == (HUB_ID, "c0ffee")


def test_licence_is_that_of_the_model_card(bert: Path) -> None:
    assert licence_of(str(bert)) is None
    tiny_models.card(bert, language="en")
    assert licence_of(str(bert)) is None
    tiny_models.card(bert, license="cc-by-4.0", language="en")
    assert licence_of(str(bert)) == "cc-by-4.0"
    (bert / "README.md").write_text("no metadata at all")
    assert licence_of(str(bert)) is None
    assert find_file(str(bert), "README.md") == bert / "README.md"
    assert find_file(str(bert), "missing.txt") is None


def test_hash_of_a_processor_is_of_what_changes_its_inputs(bert: Path, tmp_path: Path) -> None:
    ours = processor_sha256(load_processor(AutoTokenizer, str(bert)))
    other = tiny_models.bert(tmp_path / "elsewhere")
    assert processor_sha256(load_processor(AutoTokenizer, str(other))) == ours
    path = other / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": False}))
    assert processor_sha256(load_processor(AutoTokenizer, str(other))) != ours
    pictures = tiny_models.save(tmp_path / "pictures", tiny_models.dinov2_processor())
    first = processor_sha256(load_processor(AutoImageProcessor, str(pictures)))
    path = pictures / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"shortest_edge": 40', '"shortest_edge": 48'))
    assert processor_sha256(load_processor(AutoImageProcessor, str(pictures))) != first


def test_loading_says_nothing_and_leaves_the_log_as_it_was(
    bert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_model(BertModel, str(bert), add_pooling_layer=False)
    load_processor(AutoTokenizer, str(bert))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_unknown_types_are_refused(bert: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype must be one of float32, bfloat16.*got 'int4'"):
        load_model(AutoModel, str(bert), dtype="int4")
