"""Parameter counts, feature maps, the lean EfficientNet against the package, and every way of loading weights."""
import hashlib

import pytest
import torch
import torchvision
from efficientnet_pytorch import EfficientNet

from common.models.build import build, count_parameters
from common.models.efficientnet import PADDING_IMAGE_SIZE, efficientnet_b2
from common.models.trace import feature_trace, trace_words
from common.models.weights import IMAGENET_URLS, load_weights
from common.errors import InputError


@pytest.mark.parametrize("name, arguments, expected", [
    ("simple_cnn", {}, 1_147_466), ("improved_cnn", {}, 1_147_914), ("efficientnet_b2", {}, 7_715_084),
    ("se_resnet18", {"stem": "cifar"}, 11_263_042), ("se_resnet18", {"stem": "imagenet"}, 11_270_722),
])
def test_parameter_counts(name, arguments, expected):
    assert count_parameters(build(name, **arguments)) == expected


def test_se_resnet18_parameters_are_resnet18_plus_gates():
    plain = sum(p.numel() for p in torchvision.models.resnet18(num_classes=10).parameters())
    gates = 2 * sum(2 * c * (c // 16) + c // 16 + c for c in (64, 128, 256, 512))
    assert count_parameters(build("se_resnet18", stem="imagenet")) == plain + gates


@pytest.mark.parametrize("name, arguments, size, last, warns", [
    ("simple_cnn", {}, 32, (128, 4, 4), False), ("improved_cnn", {}, 32, (128, 4, 4), False),
    ("se_resnet18", {"stem": "imagenet"}, 32, (512, 1, 1), True), ("se_resnet18", {"stem": "cifar"}, 32, (512, 4, 4), False),
    ("efficientnet_b2", {}, 64, (1408, 2, 2), False), ("efficientnet_b2", {}, 32, (1408, 1, 1), True),
])
def test_feature_trace_and_its_warning(name, arguments, size, last, warns):
    model = build(name, input_size=size, **arguments).train()
    trace = feature_trace(model, size)
    assert trace[-1][1] == last
    assert any("1×1" in line and "warning" in line for line in trace_words(trace, size)) == warns
    assert model.training and not model._forward_hooks and not any(m._forward_hooks for m in model.modules())


def b2_pair(image_size=PADDING_IMAGE_SIZE):
    """The package's B2 and the lean one with equal weights, in fp64, without dropout and drop-connect."""
    torch.manual_seed(0)
    theirs = EfficientNet.from_name("efficientnet-b2", num_classes=10, image_size=image_size).double()
    ours = efficientnet_b2(padding_image_size=image_size).double()
    ours.load_state_dict(theirs.state_dict())
    return _without_drop_connect(theirs), _without_drop_connect(ours)


def _without_drop_connect(model):
    """The model without its two random parts."""
    model._global_params = model._global_params._replace(drop_connect_rate=0)
    model._dropout.p = 0.0
    return model


def test_lean_b2_equals_the_package():
    theirs, ours = b2_pair()
    images, weight = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)
    for mode in (True, False):
        outputs = [model.train(mode)(images) for model in (theirs, ours)]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)
        for model, output in zip((theirs, ours), outputs):
            model.zero_grad()
            (output * weight).sum().backward()
        for a, b in zip(theirs.parameters(), ours.parameters()):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-10)
    for a, b in zip(theirs.buffers(), ours.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_b2_padding_depends_on_the_image_size_it_was_built_for():
    """Same state dict, other function: why a checkpoint stores the size."""
    at_260, at_64 = (efficientnet_b2(padding_image_size=size) for size in (260, 64))
    at_64.load_state_dict(at_260.state_dict())
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():  # batch statistics: fresh running ones would shrink every difference to nothing
        features = [_without_drop_connect(model).train().extract_features(images) for model in (at_260, at_64)]
        assert (features[0] - features[1]).abs().mean() > 0.05 * features[0].abs().mean()
    pads = [m for m in at_260.modules() if isinstance(m, torch.nn.ZeroPad2d)]
    assert [m.padding for m in pads] == [(0, 1, 0, 1), (0, 1, 0, 1)]  # the stem and one block; the other 22 are folded


def test_drop_connect_is_drawn_in_fp32_and_keeps_the_mean():
    block = efficientnet_b2()._blocks[1].train()
    for norm in (block._bn0, block._bn1, block._bn2) if hasattr(block, "_bn0") else (block._bn1, block._bn2):
        norm.eval()
    x = torch.rand(1, block._bn2.num_features, 4, 4).expand(4000, -1, -1, -1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        branch = (block(x, drop_connect_rate=0.01) - x).float().flatten(1)
    dropped = (branch.abs().max(1).values == 0).float().mean()
    assert 0.004 < dropped < 0.018  # 1 % with a standard deviation of 0.16 %; a bf16 mask would drop 0.8 % or 1.2 % steps


def test_torchvision_resnet18_weights_fit(tmp_path):
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(num_classes=1000).state_dict()
    path = tmp_path / "resnet18.pth"
    torch.save(theirs, path)
    model = build("se_resnet18", stem="imagenet")
    assert "published state dict" in load_weights(model, "se_resnet18", str(path))
    own = model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in theirs.items() if not k.startswith("fc."))
    cifar = build("se_resnet18", stem="cifar")
    assert "conv1" in load_weights(cifar, "se_resnet18", str(path))
    assert torch.equal(cifar.state_dict()["layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])


def named_by_digest(tmp_path, state):
    """A state-dict file whose name carries its sha256 prefix, in the old non-zip format of the published B2 file."""
    raw = tmp_path / "raw.pth"
    torch.save(state, raw, _use_new_zipfile_serialization=False)
    path = tmp_path / f"efficientnet-b2-{hashlib.sha256(raw.read_bytes()).hexdigest()[:8]}.pth"
    return raw.rename(path)


def test_imagenet_b2_file(tmp_path):
    torch.manual_seed(2)
    state = EfficientNet.from_name("efficientnet-b2").state_dict()
    path = named_by_digest(tmp_path, state)
    model = build("efficientnet_b2", 10)
    head = model._fc.weight.clone()
    load_weights(model, "efficientnet_b2", str(path))
    own = model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith("_fc."))
    assert torch.equal(model._fc.weight, head)
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(InputError, match="sha256 does not begin with"):
        load_weights(model, "efficientnet_b2", str(path))


@pytest.mark.parametrize("content, message", [
    (lambda: torchvision.models.resnet18().state_dict(), "does not fit efficientnet_b2"),
    (lambda: {"a": 1}, "no state dict"),
    (lambda: [1, 2], "not a checkpoint"),
])
def test_foreign_weights_are_refused(content, message, tmp_path):
    torch.save(content(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        load_weights(build("efficientnet_b2"), "efficientnet_b2", str(tmp_path / "w.pth"))
    with pytest.raises(InputError, match="does not exist"):
        load_weights(build("efficientnet_b2"), "efficientnet_b2", str(tmp_path / "absent.pth"))


def test_download_without_network_fails_fast_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(IMAGENET_URLS, "efficientnet_b2", "http://127.0.0.1:9/efficientnet-b2-8bb594d6.pth")
    with pytest.raises(InputError, match=r"--weights FILE, or use --no-pretrained"):
        load_weights(build("efficientnet_b2"), "efficientnet_b2", None)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_offline_does_not_try_to_fetch_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("tried to download"))
    with pytest.raises(InputError, match=r"no ImageNet weights in .* and --offline forbids a download: fetch https.* give --weights FILE, or use --no-pretrained"):
        load_weights(build("efficientnet_b2"), "efficientnet_b2", None, offline=True)


def test_unknown_model():
    with pytest.raises(InputError, match="unknown model 'vgg'"):
        build("vgg")
