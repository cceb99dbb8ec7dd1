"""Where weights come from: paths, the hub's cache, hashes, damaged files and files with code in them."""

import hashlib
import zipfile
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
import torch

from flowrl.errors import RewardError
from rewards.published import HPS_V2_1, PICKSCORE
from rewards.weights import check_sha256, find_file, find_files, find_first, is_folder_like, loaded_once, read_tensors


class Code:
    """Not a tensor."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``hub(repository, files)``: puts files where the hub's client keeps what it has fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(repository, files):
        folder, commit = tmp_path / "hub" / f"models--{repository.replace('/', '--')}", "0" * 40
        for name in ("refs", f"snapshots/{commit}"):
            (folder / name).mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        for name, content in files.items():
            (folder / "snapshots" / commit / name).write_bytes(content)

    return add


def test_a_file_of_the_hub_is_found_by_owner_name_and_file(hub):
    hub("xswu/HPSv2", {"HPS_v2.1_compressed.pt": b"weights"})
    assert find_file(HPS_V2_1.checkpoint, HPS_V2_1).read_bytes() == b"weights"
    assert find_file("xswu/HPSv2@main:HPS_v2.1_compressed.pt", HPS_V2_1).read_bytes() == b"weights"


def test_of_a_repository_those_files_are_found_that_it_has(hub):
    hub("a/b", {"config.json": b"{}", "pytorch_model.bin": b"w"})
    assert {n: p.read_bytes() for n, p in find_files("a/b", ["config.json", "missing.json"], PICKSCORE).items()} == {"config.json": b"{}"}
    assert find_first("a/b@main", ["model.safetensors", "pytorch_model.bin"], PICKSCORE).name == "pytorch_model.bin"


@pytest.mark.parametrize("checkpoint", ["xswu/HPSv2:HPS_v2.1_compressed.pt", "weights/HPS.pt", "./nowhere/at/all"])
def test_missing_weights_say_where_they_come_from_and_the_command_that_fetches_them(hub, checkpoint):
    with pytest.raises(RewardError, match=r"hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt --local-dir weights/HPSv2"):
        find_file(checkpoint, HPS_V2_1)


def test_a_hub_that_cannot_be_reached_is_not_taken_for_one_without_the_file(hub, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    hub("a/b", {"config.json": b"{}"})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(RewardError, match=r"preprocessor_config\.json of a/b cannot be fetched \(LocalEntryNotFoundError: no connection"):
        find_files("a/b", ["preprocessor_config.json"], PICKSCORE)


def test_without_a_connection_nothing_is_tried_again_and_what_is_here_is_found(hub, monkeypatch):
    download, asked = huggingface_hub.hf_hub_download, []

    def unreachable(url):
        asked.append(url)
        raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names, **more: download(*names, **more, local_files_only=True))
    with pytest.raises(RewardError, match=r"HPS_v2\.pt of a/b cannot be fetched \(ConnectError: \[Errno -2\] Name or service not known; "):
        find_file("a/b:HPS_v2.pt", HPS_V2_1)
    assert asked == ["https://huggingface.co/a/b/resolve/main/HPS_v2.pt"]
    hub("a/b", {"HPS_v2.pt": b"weights"})
    assert find_file("a/b:HPS_v2.pt", HPS_V2_1).read_bytes() == b"weights"
    assert len(asked) == 1


@pytest.mark.parametrize("error", [httpx.ConnectTimeout("slow"), ValueError("no such name")])
def test_what_a_second_try_may_mend_and_what_the_hub_itself_says_is_left_to_the_download(error, hub, monkeypatch):
    def unsure(_):
        raise error

    def download(*_, **__):
        raise OSError("told by the download")

    hub("a/b", {})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unsure)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(RewardError, match="told by the download"):
        find_file("a/b:HPS_v2.pt", HPS_V2_1)


def test_a_folder_without_the_wanted_files_says_what_was_looked_for(tmp_path):
    with pytest.raises(RewardError, match=r"has none of the files model\.safetensors; PickScore is yuvalkirstain/PickScore_v1"):
        find_first(str(tmp_path), ["model.safetensors"], PICKSCORE)


def test_a_path_is_no_folder_because_it_looks_like_owner_and_name(tmp_path):
    (tmp_path / "file.pt").write_bytes(b"")
    answers = [
        is_folder_like(str(name)) for name in (tmp_path, tmp_path / "file.pt", "owner/name", "owner/name:file.pt", "weights/file.pt")
    ]
    assert answers == [True, False, True, False, False]


def test_the_sha256_is_checked_whatever_its_case(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    check_sha256(path, None)
    check_sha256(path, digest.upper())
    path.write_bytes(b"Weights")  # as long as before
    with pytest.raises(RewardError, match=f"expected {digest}: it is damaged or another file"):
        check_sha256(path, digest)


def test_tensors_come_out_of_a_training_checkpoint_without_its_prefix_and_the_rest(tmp_path):
    torch.save({"epoch": 1, "state_dict": {"module.a": torch.ones(2), "module.b": torch.zeros(1)}}, tmp_path / "run.pt")
    torch.save({"a": torch.ones(2), "step": 4}, tmp_path / "plain.pt")
    assert {name: value.tolist() for name, value in read_tensors(tmp_path / "run.pt").items()} == {"a": [1, 1], "b": [0]}
    assert {name: value.tolist() for name, value in read_tensors(tmp_path / "plain.pt").items()} == {"a": [1, 1]}


def test_an_old_checkpoint_that_is_no_zip_file_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "old.pth")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("kind", ["code", "truncated", "script", "empty", "safetensors"])
def test_a_file_that_is_not_plain_weights_is_refused_without_running_it(tmp_path, kind):
    path = Path(tmp_path, "file.safetensors" if kind == "safetensors" else "file.pt")
    torch.save({"a": Code()} if kind == "code" else {"b": 3} if kind == "empty" else {"a": torch.ones(2000)}, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:3000])
    if kind == "script":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("file/constants.pkl", b"")
    reasons = {"script": "TorchScript archive, which is code", "empty": "holds no tensors by name"}
    with pytest.raises(RewardError, match=reasons.get(kind, "only tensors are loaded, never code")):
        read_tensors(path)


def test_what_is_loaded_is_kept_for_equal_arguments_and_a_failure_is_not():
    calls = []

    @loaded_once
    def load(name):
        calls.append(name)
        if name == "bad":
            raise RewardError("no")
        return object()

    assert load("a") is load("a")
    assert load("a") is not load("b")
    for _ in range(2):
        with pytest.raises(RewardError):
            load("bad")
    assert calls == ["a", "b", "bad", "bad"]
