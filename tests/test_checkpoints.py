"""lib.checkpoints: weights from a run, a folder, a file or a released checkpoint; what is none of these is one sentence."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from tiny import tiny_settings

from lib.checkpoints import load_checkpoint, note_of
from lib.clipseg import build
from lib.paths import ROOT, InputError, write_json
from lib.profiles import Settings, settings_of
from lib.runs import processes
from lib.training.loop import loader
from lib.training.run import check_precision
from lib.training.weights import save_weights


def finished(folder: Path, run: str = "adapter", **changes: object) -> Settings:
    settings = tiny_settings(run, **changes)
    save_weights(build(settings), folder / "best.safetensors")
    write_json(folder / "config.json", {"hash": settings.hash(), "settings": asdict(settings), "finished": settings.hash()})
    return settings


def refusal(*arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_run_by_name_folder_or_file_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    folder = tmp_path / "smoke" / "runs" / "adapter-seed_1"
    expected = finished(folder, seed=1, adapter_width=16)  # not what the profile has today
    for checkpoint, profile in (("adapter, seed 1", "smoke"), (folder, None), (folder / "best.safetensors", None)):
        model, settings = load_checkpoint(checkpoint, profile)
        assert settings == expected
        weights = build(expected).state_dict()
        assert all(torch.equal(weights[name], tensor.cpu()) for name, tensor in model.state_dict().items())


def test_without_a_trained_run_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    text = refusal("adapter", "smoke")
    assert text.startswith(str(tmp_path / "smoke" / "runs" / "adapter")) and "make paper" in text and "weights" in text
    finished(tmp_path / "smoke" / "runs" / "adapter")
    config = tmp_path / "smoke" / "runs" / "adapter" / "config.json"
    record = json.loads(config.read_text())
    write_json(config, {name: record[name] for name in ("hash", "settings")})
    assert "training has not ended" in refusal("adapter", "smoke")
    write_json(config, record | {"settings": record["settings"] | {"colour": "blue"}})
    assert "is not the configuration of a run" in refusal("adapter", "smoke")
    config.write_text("{")
    assert "is not the configuration of a run" in refusal("adapter", "smoke")


@pytest.fixture
def built_for_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch that was compiled for CUDA, on a machine without a GPU."""
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    PartialState._reset_state()  # it holds the device that was chosen before
    yield
    PartialState._reset_state()


def test_torch_built_for_cuda_on_a_machine_without_a_gpu(built_for_cuda: None, tmp_path: Path) -> None:
    """Most newcomers' on Linux: `current_accelerator()` names a device that is not there."""
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    finished(tmp_path)
    model, _ = load_checkpoint(tmp_path)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert processes().device.type == "cpu"
    assert not loader(range(3), tiny_settings(), 0, processes().device).pin_memory
    with pytest.raises(InputError, match="fp16 needs a GPU, and none is found"):
        check_precision("fp16", processes().device)


def test_no_module_takes_the_device_that_torch_was_compiled_for() -> None:
    """One place chooses: `lib.runs.processes`."""
    files = [path for part in ("lib", "publish", "proof", "benchmark", "notebooks") for path in (ROOT / part).rglob("*.py")]
    assert len(files) > 80
    for path in (*files, ROOT / "paper.py", ROOT / "segment.py"):
        assert not re.search(r"current_accelerator|\.cuda\(|is_built\(", path.read_text()), path


@pytest.mark.parametrize("name", ["runs/nowhere", "model.pt", "model.pth", "model.safetensors"])
def test_a_path_that_is_not_there(name: str) -> None:
    assert f"{name} does not exist" in refusal(name)


def test_a_model_that_takes_no_prompts(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"settings": asdict(tiny_settings("dynunet")), "finished": ""})
    (tmp_path / "best.safetensors").touch()
    assert "takes no prompts" in refusal(tmp_path)


def test_a_released_checkpoint_loads_and_nothing_else_is_unpickled(tmp_path: Path) -> None:
    model = build(tiny_settings("adapter, as released", seed=5))
    names = {name.removeprefix("adapter."): tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 1, "model_state_dict": names}, tmp_path / "best.pt")
    found, settings = load_checkpoint(tmp_path / "best.pt", "smoke")
    assert settings == tiny_settings("adapter, as released")
    assert all(torch.equal(tensor.cpu(), names[name.removeprefix("adapter.")]) for name, tensor in found.state_dict().items())
    torch.save({"model_state_dict": print}, tmp_path / "evil.pt")  # a function: unpickling it could run anything
    assert "belongs to another model" in refusal(tmp_path / "evil.pt", "smoke")


def test_every_model_says_what_it_can_claim() -> None:
    assert note_of(settings_of("adapter", "smoke")) == note_of(settings_of("baseline", "demo")) == "trained on phantoms: not for real scans"
    assert note_of(settings_of("adapter", "sample")) == "trained on slabs of one CT: no claim about accuracy"
    assert note_of(settings_of("adapter", "full")) == "research only: not a medical device"
