"""The Hugging Face hub: safe files alone, and its errors as one line each."""

from __future__ import annotations

import pytest

from jasper_jax.assets import hub
from jasper_jax.assets.catalogue import Unavailable


def test_the_hub_is_asked_for_safe_files_of_the_revision(monkeypatch, tmp_path):
    import huggingface_hub

    calls = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **given: calls.append((repo, given)) or str(tmp_path),
    )
    assert hub.snapshot("org/name", "abc", progress=False) == tmp_path
    ((repo, given),) = calls
    assert (repo, given["revision"]) == ("org/name", "abc")
    wanted = ["config.json", "1_Pooling/config.json", "model.safetensors", "2_Dense/model.safetensors"]
    wanted += ["vocab.txt", "spiece.model"]
    others = ["pytorch_model.bin", "modeling.py", "onnx/model.onnx", "openvino/config.json", "x.pt", "a.md"]
    patterns = {key: given[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(huggingface_hub.utils.filter_repo_objects(wanted + others, **patterns)) == wanted


def test_hub_errors_are_one_line(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import errors

    def failing(error):
        def snapshot(repo, **given):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        with pytest.raises(Unavailable) as caught:
            hub.snapshot("org/name", "v1", progress=False)
        return str(caught.value)

    def of(kind):  # the hub's own errors want a whole HTTP response
        return kind.__new__(kind)

    assert failing(of(errors.GatedRepoError)).endswith("then `hf auth login`")
    assert "no such model" in failing(of(errors.RepositoryNotFoundError))
    assert failing(of(errors.RevisionNotFoundError)) == "hub org/name@v1: there is no such revision"
    missing = errors.LocalEntryNotFoundError("Got: ConnectError\nPlease check your connection.")
    assert failing(missing) == "hub org/name@v1: Got: ConnectError"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert failing(missing) == "hub org/name@v1: HF_HUB_OFFLINE is set, and the hub's cache does not have it"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert "bad id" in failing(errors.HFValidationError("bad id"))
