"""Weights in the hub's format and the released code's: what loads offline, what a hash makes of them, and how the rest is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_settings
from transformers import BertConfig, BertModel, CLIPSegConfig, CLIPSegForImageSegmentation

from lib import profiles
from lib.clipseg import TextPromptedSegmenter, build, small_tokenizer
from lib.paths import InputError
from lib.profiles import HUB_REVISION, HUB_WEIGHTS, PROFILES, Settings, settings_of, weights_file
from lib.profiles.pretrained import check_weights
from lib.runs import run_folder, trained


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("WEIGHTS", "PRECISION", "PROFILE"):
        monkeypatch.delenv(name, raising=False)


def in_hub_format(folder: Path, seed: int = 0) -> Path:
    """A small CLIPSeg of random weights, as `hf download` leaves one."""
    made = build(tiny_settings(seed=seed))
    made.base_model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def test_the_hub_s_weights_are_pinned_to_a_commit() -> None:
    settings = settings_of("adapter", "full")
    assert settings.weights == HUB_WEIGHTS and settings.revision == HUB_REVISION and len(HUB_REVISION) == 40


def test_a_folder_counts_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = in_hub_format(tmp_path / "first"), in_hub_format(tmp_path / "other", seed=1)
    hashes = {}
    for name, folder in {"first": first, "other": other, "moved": shutil.copytree(first, tmp_path / "moved")}.items():
        monkeypatch.setenv("WEIGHTS", str(folder))
        hashes[name] = settings_of("adapter", "full").hash()
        assert settings_of("adapter", "full").weights == str(folder) and weights_file(str(folder)) == folder / "model.safetensors"
    plain = Settings(profile="full", adapter=True).hash()
    assert hashes["first"] == hashes["moved"] != hashes["other"] and plain not in hashes.values()
    monkeypatch.setattr("lib.profiles.settings.HUB_SHA256", profiles.settings.file_hash(first / "model.safetensors"))
    assert replace(Settings(adapter=True), weights=str(first)).hash() == plain, "a download of the hub's own is the hub's"
    assert weights_file("") is None and weights_file(HUB_WEIGHTS) is None and weights_file(str(tmp_path)) is None


def refusal(weights: Path) -> str:
    with pytest.raises(InputError) as caught:
        build(tiny_settings(weights=str(weights)))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(weights)) and text.endswith(".")
    return text


def test_folders_that_hold_no_clipseg_are_refused(tmp_path: Path) -> None:
    advice = f"`hf download {HUB_WEIGHTS} --revision {HUB_REVISION} --local-dir FOLDER` and set WEIGHTS=FOLDER"
    assert advice in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert advice in refusal(tmp_path / "empty")
    cut = in_hub_format(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    assert advice in refusal(cut)
    sizes = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    BertModel(sizes).save_pretrained(tmp_path / "bert")
    assert "CLIPSeg lacks" in refusal(tmp_path / "bert") or "cannot be loaded" in refusal(tmp_path / "bert")
    without = in_hub_format(tmp_path / "without")
    for path in without.glob("*token*"):
        path.unlink()
    assert "CLIPSeg's tokenizer" in refusal(without)


def test_a_folder_is_looked_into_before_anything_starts(tmp_path: Path) -> None:
    """What is needed of it, that is, without loading it."""
    check_weights(str(in_hub_format(tmp_path / "whole")), "CLIPSeg")
    (vit := tmp_path / "vit").mkdir()
    for name in ("model.safetensors", "config.json"):
        (vit / name).touch()
    check_weights(str(vit), "the image encoder")
    check_weights("MiniLM", "the text encoder")
    lacking = {"nothing": "there is no such folder", "tokenizer": "there is no tokenizer.json or vocab.json or vocab.txt in this folder"}
    shutil.copytree(vit, tmp_path / "tokenizer")
    for name in ("config.json", "model.safetensors"):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        (tmp_path / name / name).unlink()
        lacking[name] = f"there is no {name}"
    for name, why in lacking.items():
        with pytest.raises(InputError) as caught:
            check_weights(str(tmp_path / name), "CLIPSeg")
        assert why in str(caught.value) and "set WEIGHTS=FOLDER" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cached", [True, False])
def test_the_hub_is_asked_once_and_only_for_what_is_not_in_its_cache(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(url: str) -> None:
        asked.append(url)
        raise ConnectionError("[Errno -3] Temporary failure in name resolution\nand more")

    monkeypatch.setattr("lib.profiles.pretrained.try_to_load_from_cache", lambda *_, **__: "path" if cached else None)
    monkeypatch.setattr("lib.profiles.pretrained.get_hf_file_metadata", ask)
    check_weights.cache_clear()
    try:
        if cached:
            check_weights(HUB_WEIGHTS, "CLIPSeg", HUB_REVISION)
        else:
            with pytest.raises(
                InputError, match=r"^google/vit-base-patch16-224: the image encoder cannot be loaded \(\[Errno -3\]"
            ) as caught:
                check_weights("google/vit-base-patch16-224", "the image encoder")
            assert "\n" not in str(caught.value) and "give FOLDER in its place" in str(caught.value)
    finally:
        check_weights.cache_clear()
    assert len(asked) == (not cached)


def test_a_precision_is_chosen_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    published = settings_of("adapter", "full")
    monkeypatch.setenv("PRECISION", "fp32")
    assert settings_of("adapter", "full") == published and published.precision == "no"
    monkeypatch.setenv("PRECISION", "fp16")
    assert settings_of("adapter", "full").precision == "fp16" and settings_of("adapter", "full").hash() != published.hash()
    assert settings_of("adapter", "demo").precision == "no", "the full profile's alone"
    monkeypatch.setenv("PRECISION", "half")
    with pytest.raises(InputError, match=r"^PRECISION=half is none: choose one of fp32, fp16, bf16\.$"):
        settings_of("adapter", "full")


def test_a_released_checkpoint_is_scored_as_it_is_and_starts_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, home = "adapter, as released", in_hub_format(tmp_path / "authors")
    made = build(tiny_settings(run, seed=5))
    weights = {name.removeprefix("adapter."): tensor for name, tensor in made.state_dict().items()}
    path = home / "best.pt"
    torch.save({"model_state_dict": weights}, path)
    monkeypatch.setenv("WEIGHTS", str(path))
    sizes = {name: value for name, value in PROFILES["smoke"].items() if name not in ("phantoms", "start_from", "weights", "epochs")}
    monkeypatch.setitem(PROFILES, "full", sizes)
    settings = settings_of(run, "full")
    assert settings.weights == str(path) and settings.epochs == 0
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    found = trained(run, "full").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in made.state_dict().items())
    assert profiles.is_finished(run_folder(run, "full"), settings)
    with pytest.raises(InputError, match="no start for 'baseline': score it by"):
        settings_of("baseline", "full")


@pytest.mark.slow
def test_full_size_weights_in_the_hub_s_format_load_offline(tmp_path: Path) -> None:
    """160.8 million parameters, 0.6 GB on disk: about half a minute."""
    config = CLIPSegConfig(
        vision_config={"patch_size": 16}, extract_layers=[3, 6, 9], reduce_dim=64, use_complex_transposed_convolution=True
    )
    torch.manual_seed(0)
    made = CLIPSegForImageSegmentation(config)
    made.save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    model = build(replace(settings_of("adapter", "full"), weights=str(tmp_path)))
    assert isinstance(model, TextPromptedSegmenter) and sum(p.numel() for p in model.parameters()) > 150e6
    assert all(torch.equal(tensor, model.base_model.state_dict()[name]) for name, tensor in made.state_dict().items())
