"""The published files of LPIPS to ours: the layers in their places, and bad input in one line."""

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from diffusers_lightningdit.networks.lpips import LPIPS

SCRIPT = Path(__file__).parents[2] / "conversion" / "convert_lpips_to_safetensors.py"
spec = importlib.util.spec_from_file_location("convert_lpips_to_safetensors", SCRIPT)
CONVERT = importlib.util.module_from_spec(spec)
spec.loader.exec_module(CONVERT)

# (layer, channels in, channels out) of the convolutions in torchvision's `vgg16().features`; a rectifier follows each
CONVOLUTIONS = [(0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256)]
CONVOLUTIONS += [(17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512)]
POOLINGS = (4, 9, 16, 23)
TAPS = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}  # rectifiers whose output is compared


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """({weights of VGG16}, {linear weights}, file, file) in the published layout, with random values."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    vgg16, linear = {}, {}
    for layer, of, to in CONVOLUTIONS:
        vgg16[f"features.{layer}.weight"] = torch.randn(to, of, 3, 3, generator=generator) * (2 / (9 * of)) ** 0.5
        vgg16[f"features.{layer}.bias"] = torch.randn(to, generator=generator) * 0.1
    vgg16["classifier.6.bias"] = torch.zeros(1000)
    for i, width in enumerate((64, 128, 256, 512, 512)):
        linear[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    torch.save(vgg16, folder / "vgg16.pth")
    torch.save(linear, folder / "vgg.pth")
    return vgg16, linear, folder / "vgg16.pth", folder / "vgg.pth"


def call(vgg16, linear, output) -> None:
    arguments = [f"--vgg16={vgg16}", f"--linear={linear}", f"--output={output}"]
    hashes = [f"--{name}_sha256={sha256(file)}" for name, file in (("vgg16", vgg16), ("linear", linear))]
    CONVERT.main([*arguments, *hashes])


def sha256(file: Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else "0" * 8


def reference(vgg16: dict, linear: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The paper's equation 1, layer by layer and position by position, in float64."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    taps = []
    for image in (x, y):
        # (x + 1) / 2 normalised as ImageNet is; the published constants are these, rounded to three places
        scaled = (image - (2 * mean - 1).round(decimals=3).view(3, 1, 1)) / (2 * std).round(decimals=3).view(3, 1, 1)
        scaled, found = scaled.double(), {}
        for layer in range(30):
            if layer in POOLINGS:
                scaled = F.max_pool2d(scaled, kernel_size=2, stride=2)
            elif f"features.{layer}.weight" in vgg16:
                weight, bias = (vgg16[f"features.{layer}.{kind}"].double() for kind in ("weight", "bias"))
                scaled = F.conv2d(scaled, weight, bias, padding=1)
            else:
                scaled = scaled.clamp(min=0)
            if layer in TAPS:
                found[TAPS[layer]] = scaled
        taps.append(found)
    distances = torch.zeros(len(x), dtype=torch.float64)
    for i in range(5):
        weight = linear[f"lin{i}.model.1.weight"].double().view(-1)
        a, b = taps[0][i], taps[1][i]
        for n in range(len(x)):
            of_positions = [
                (weight * (u / u.norm() - v / v.norm()) ** 2).sum()
                for u, v in zip(a[n].flatten(1).T, b[n].flatten(1).T, strict=True)
            ]
            distances[n] += sum(of_positions) / len(of_positions)
    return distances


def test_the_converted_file_computes_the_papers_distance(published, tmp_path, capsys):
    vgg16, linear, *files = published
    call(*files, tmp_path / "lpips.safetensors")
    digest = sha256(tmp_path / "lpips.safetensors")
    assert digest in capsys.readouterr().out
    model = LPIPS.from_file(tmp_path / "lpips.safetensors", sha256=digest)
    x, y = torch.rand(2, 2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        found = model(x, y)
    assert found.shape == (2, 1, 1, 1)
    expected = reference(vgg16, linear, x, y)
    torch.testing.assert_close(found.flatten().double(), expected, atol=0, rtol=1e-4)

    call(*files, tmp_path / "again.safetensors")  # the same bytes, so that a hash can be published
    assert digest == sha256(tmp_path / "again.safetensors")
    with pytest.raises(ValueError, match=f"was converted from vgg16 weights of sha256 {sha256(files[0])}; required"):
        LPIPS.from_file(tmp_path / "lpips.safetensors")


def test_the_published_files_are_asked_for(published, tmp_path, capsys, monkeypatch):
    files = [f"--vgg16={published[2]}", f"--linear={published[3]}", f"--output={tmp_path / 'lpips.safetensors'}"]
    with pytest.raises(SystemExit):
        CONVERT.main(files)
    assert (
        f"vgg16.pth has the sha256 {sha256(published[2])}; required: the one that `vgg16_sha256`"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        CONVERT.main([*files, f"--vgg16_sha256={sha256(published[2])[:8]}"])
    assert "required: the one that `linear_sha256` gives, 'a78928a0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        CONVERT.main([*files, "--vgg16_sha256=ab"])
    assert "`vgg16_sha256` gives, 'ab' (at least 8 digits)" in capsys.readouterr().err
    # files of these hashes: what is written says so
    for name, file in (("vgg16", published[2]), ("linear", published[3])):
        monkeypatch.setitem(CONVERT.PUBLISHED_SHA256, name, sha256(file))
    CONVERT.main([*files, *(f"--{name}_sha256={digits}" for name, digits in CONVERT.PUBLISHED_SHA256.items())])
    LPIPS.from_file(tmp_path / "lpips.safetensors")


def changed(weights: dict, key: str, value) -> dict:
    return {name: tensor for name, tensor in {**weights, key: value}.items() if tensor is not None}


def test_bad_input_is_one_line_and_writes_nothing(published, tmp_path, capsys):
    vgg16, linear, vgg16_file, linear_file = published
    out = tmp_path / "out" / "lpips.safetensors"
    out.parent.mkdir()

    def line_of(vgg16=vgg16_file, linear=linear_file, output=out) -> str:
        before = sorted(out.parent.iterdir())
        with pytest.raises(SystemExit) as stop:
            call(vgg16, linear, output)
        assert stop.value.code == 2
        assert sorted(out.parent.iterdir()) == before
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err

    assert "no such file" in line_of(vgg16=tmp_path / "absent.pth")
    assert "lin0.model.1.weight` is missing" in line_of(linear=vgg16_file)
    for value, said in (
        (None, "is missing"),
        (torch.zeros(512), "has shape [512]"),
        (torch.full((512, 512, 3, 3), torch.nan), "NaN"),
    ):
        file = tmp_path / "changed.pth"
        torch.save(changed(vgg16, "features.28.weight", value), file)
        line = line_of(vgg16=file)
        assert f"{file.name}: key `features.28.weight`" in line
        assert said in line
    torch.save(changed(linear, "lin2.model.1.weight", -torch.ones(1, 256, 1, 1)), tmp_path / "negative.pth")
    assert "key `lin2.model.1.weight` has values below 0" in line_of(linear=tmp_path / "negative.pth")
    assert "required: a .safetensors file" in line_of(output=tmp_path / "out/lpips.pt")
    out.write_text("precious")
    assert "exists; required: a new file" in line_of()
    assert out.read_text() == "precious"
