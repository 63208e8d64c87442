"""Files for phones: torch's embeddings, or no file. The conversions themselves are skipped without their packages."""

import numpy as np
import pytest
import torch
from golden_networks import settings

from backbones import build_backbone
from deploy import export_mobile
from utils.errors import InputError
from utils.packages import missing_packages

SMALL = ["width=0.125", "embedding_size=16"]


def run_script(folder, monkeypatch, name: str) -> None:
    torch.manual_seed(0)
    network = build_backbone(settings(width=0.125, embedding_size=16))
    torch.save(network.state_dict(), folder / "3backbone.pth")
    files = ["--checkpoint", str(folder / "3backbone.pth"), "--output", str(folder / name)]
    monkeypatch.setattr("sys.argv", ["export_mobile.py", *files, f"val_rec={folder}", *SMALL])
    export_mobile.main()


@pytest.mark.parametrize("ending", export_mobile.FORMATS)
def test_the_file_has_the_embeddings_of_torch(ending, tmp_path, monkeypatch, capsys):
    if missing_packages(export_mobile.FORMATS[ending][0]):
        pytest.skip(f"{export_mobile.FORMATS[ending][0]} is not installed (requirements/mobile.txt)")
    run_script(tmp_path, monkeypatch, f"m{ending}")
    assert "100 drawn patterns" in capsys.readouterr().out and (tmp_path / f"m{ending}").stat().st_size > 10_000


@pytest.mark.parametrize("error", [0.0, 0.1, np.nan])
def test_a_file_with_other_embeddings_is_not_written(error, tmp_path, monkeypatch):
    @torch.inference_mode()
    def convert(network, pixels):
        embeddings = network(pixels).numpy()
        embeddings[7, 0] += error * abs(embeddings[7]).max()
        return b"content", embeddings

    monkeypatch.setattr(export_mobile, "FORMATS", {".pte": ("torch", convert)})
    if error == 0:
        run_script(tmp_path, monkeypatch, "m.pte")
        assert (tmp_path / "m.pte").read_bytes() == b"content"
        return
    with pytest.raises(InputError, match="no file was written"):
        run_script(tmp_path, monkeypatch, "m.pte")
    assert not (tmp_path / "m.pte").exists()


def test_other_endings_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"must end in \.tflite or \.pte"):
        run_script(tmp_path, monkeypatch, "m.onnx")
    monkeypatch.setattr(export_mobile, "FORMATS", {".pte": ("no_such_package", None)})
    with pytest.raises(InputError, match=r"needs no_such_package; run `pip install -r requirements/mobile\.txt`"):
        run_script(tmp_path, monkeypatch, "m.pte")
