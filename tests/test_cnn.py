import pytest
import torch
from torch import nn

from src.models.cnn import GenreClassifierCNN, count_parameters, fold_batch_norm


@pytest.fixture(scope="module")
def batch():
    return torch.rand(6, 1, 128, 130, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(batch):
    """Return a network in eval mode whose batch norms are not those of the initialization."""
    torch.manual_seed(1)
    model = GenreClassifierCNN()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(batch)
    return model.eval()


def test_the_network_has_the_documented_number_of_parameters():
    assert count_parameters(GenreClassifierCNN()) == 1_440_618


def test_conv4_2_is_the_last_convolution_to_run(model, batch):
    seen = []
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    with torch.no_grad():
        logits = model(batch)
    for hook in hooks:
        hook.remove()
    assert logits.shape == (6, 10)
    assert seen == [f"conv{block}_{conv}" for block in (1, 2, 3, 4) for conv in (1, 2)]


@torch.no_grad()
def test_scale_and_offset_of_a_spectrogram_do_not_change_its_logits(model, batch):
    gain = torch.tensor([1, 0.9, 0.8, 0.5, 0.3, 0.2]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(model(batch * gain + 0.1), model(batch), rtol=0, atol=2e-3)


@torch.no_grad()
def test_logits_of_a_clip_do_not_depend_on_its_neighbours(model, batch):
    torch.testing.assert_close(model(batch)[2:3], model(batch[2:3]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_spectrogram_gives_finite_logits_and_gradients(model, level):
    x = torch.full((2, 1, 128, 130), level, requires_grad=True)
    logits = model(x)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert x.grad.isfinite().all()


@torch.no_grad()
def test_the_folded_copy_is_the_same_function_and_frozen(model, batch):
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(batch), model(batch), rtol=0, atol=1e-4)
    assert not any(p.requires_grad for p in folded.parameters())
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in folded.modules())


def test_folding_leaves_the_original_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    folded = fold_batch_norm(model)
    assert model.training
    assert not folded.training
    model.eval()
    assert all(p.requires_grad for p in model.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
