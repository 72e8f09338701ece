"""Every layer against PyTorch's: printed form, state dict, forward, gradients, buffers."""

import pytest
import torch

import flambeau as fb
from tests.nn.compare import check_module, close, ours


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    fb.manual_seed(0)


def rand(*shape, grad=True):
    return torch.randn(*shape, requires_grad=grad)


LAYERS = [
    ("Linear", (5, 3), {}, (4, 5)),
    ("Linear", (5, 3), {"bias": False}, (2, 3, 5)),
    ("Linear", (5, 3), {}, (5,)),
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 9)),
    ("Conv2d", (3, 4, 3), {}, (2, 3, 7, 6)),
    (
        "Conv2d",
        (4, 6, (3, 2)),
        {"stride": (2, 1), "padding": (1, 0), "groups": 2, "bias": False},
        (2, 4, 7, 6),
    ),
    ("Conv2d", (3, 4, 3), {"dilation": 2, "padding": "same"}, (1, 3, 8, 9)),
    ("Conv2d", (3, 4, 4), {"padding": "same"}, (3, 8, 9)),
    ("Conv2d", (3, 4, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 3, 5, 5)),
    ("Conv2d", (3, 4, 3), {"padding": (2, 1), "padding_mode": "circular"}, (2, 3, 5, 5)),
    ("Conv2d", (3, 4, 3), {"padding": 1, "padding_mode": "replicate"}, (2, 3, 5, 5)),
    ("Conv3d", (2, 3, 2), {"padding": 1}, (2, 2, 4, 3, 5)),
    ("ConvTranspose1d", (4, 2, 3), {"stride": 2, "output_padding": 1}, (2, 4, 5)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 5, 4)),
    ("ConvTranspose3d", (2, 3, 2), {"stride": 2}, (1, 2, 3, 2, 3)),
    ("BatchNorm1d", (4,), {}, (6, 4)),
    ("BatchNorm1d", (4,), {"momentum": None}, (6, 4, 3)),
    ("BatchNorm2d", (3,), {"momentum": 0.3}, (4, 3, 5, 2)),
    ("BatchNorm2d", (3,), {"affine": False}, (4, 3, 5, 2)),
    ("BatchNorm2d", (3,), {"track_running_stats": False}, (4, 3, 5, 2)),
    ("BatchNorm3d", (2,), {}, (3, 2, 2, 3, 2)),
    ("LayerNorm", (5,), {}, (4, 5)),
    ("LayerNorm", ((3, 5),), {"bias": False}, (4, 3, 5)),
    ("LayerNorm", (5,), {"elementwise_affine": False}, (4, 5)),
    ("RMSNorm", (5,), {}, (4, 5)),
    ("RMSNorm", (5,), {"eps": 1e-3}, (4, 5)),
    ("GroupNorm", (2, 6), {}, (3, 6, 4)),
    ("Identity", (), {}, (3, 4)),
    ("Flatten", (), {}, (2, 3, 4)),
    ("Unflatten", (1, (2, 3)), {}, (2, 6)),
    ("MaxPool1d", (3,), {"stride": 2}, (2, 3, 9)),
    ("MaxPool2d", (2,), {}, (2, 3, 7, 6)),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 8, 7)),
    ("MaxPool2d", (2,), {"dilation": 2, "stride": 1}, (3, 6, 6)),
    ("MaxPool3d", (2,), {}, (1, 2, 4, 4, 5)),
    ("AvgPool1d", (3,), {"stride": 2, "padding": 1}, (2, 3, 9)),
    ("AvgPool2d", (2,), {}, (2, 3, 6, 7)),
    ("AvgPool2d", (3,), {"stride": 2, "padding": 1, "count_include_pad": False}, (2, 3, 6, 7)),
    ("AvgPool2d", (3,), {"stride": 2, "padding": 1, "ceil_mode": True}, (2, 3, 6, 7)),
    ("AvgPool2d", (2,), {"divisor_override": 3}, (2, 3, 6, 6)),
    ("AvgPool3d", (2,), {}, (1, 2, 4, 4, 4)),
    ("AdaptiveAvgPool1d", (3,), {}, (2, 3, 7)),
    ("AdaptiveAvgPool2d", (1,), {}, (2, 3, 4, 5)),
    ("AdaptiveAvgPool2d", ((3, None),), {}, (2, 3, 7, 5)),
    ("AdaptiveAvgPool3d", (2,), {}, (1, 2, 4, 3, 2)),
    ("AdaptiveMaxPool2d", ((2, 3),), {}, (2, 3, 4, 7)),
]
ACTIVATIONS = [
    ("ReLU", {}), ("ReLU6", {}), ("LeakyReLU", {"negative_slope": 0.2}), ("ELU", {"alpha": 0.5}), ("CELU", {"alpha": 2.0}),
    ("SELU", {}), ("GELU", {}), ("GELU", {"approximate": "tanh"}), ("SiLU", {}), ("Mish", {}), ("Softplus", {"beta": 2.0}),
    ("LogSigmoid", {}), ("Sigmoid", {}), ("Tanh", {}), ("Softsign", {}), ("Tanhshrink", {}), ("Hardtanh", {}),
    ("Hardsigmoid", {}), ("Hardswish", {}), ("Hardshrink", {}), ("Softshrink", {"lambd": 0.3}), ("PReLU", {}),
    ("PReLU", {"num_parameters": 6}), ("GLU", {"dim": 1}), ("Softmax", {"dim": 1}), ("Softmin", {"dim": 0}),
    ("LogSoftmax", {"dim": -1}), ("Threshold", {"threshold": 0.1, "value": 2.0}),
]  # fmt: skip


@pytest.mark.parametrize("name, given, options, shape", LAYERS)
def test_layer(name, given, options, shape):
    check_module(
        getattr(fb.nn, name)(*given, **options), getattr(torch.nn, name)(*given, **options), rand(*shape)
    )


@pytest.mark.parametrize("name, options", ACTIVATIONS)
def test_activation(name, options):
    check_module(getattr(fb.nn, name)(**options), getattr(torch.nn, name)(**options), rand(5, 6))


def test_batch_norm_in_evaluation_mode_uses_what_training_gathered():
    mine, theirs = fb.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    for _ in range(3):
        x = rand(4, 3, 5, 2, grad=False) * 2 + 1
        mine(ours(x))
        theirs(x)
    mine.eval()
    theirs.eval()
    check_module(mine, theirs, rand(4, 3, 5, 2))


def test_embedding_and_its_padding_row():
    index = torch.tensor([[1, 0, 4], [2, 2, 0]])
    check_module(fb.nn.Embedding(5, 3, padding_idx=0), torch.nn.Embedding(5, 3, padding_idx=0), index)


@pytest.mark.parametrize("bias", [True, False])
def test_bilinear(bias):
    check_module(fb.nn.Bilinear(3, 4, 2, bias), torch.nn.Bilinear(3, 4, 2, bias), rand(5, 3), rand(5, 4))


@pytest.mark.parametrize("options", [
    {}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 6, "vdim": 10},
])  # fmt: skip
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(options, need_weights):
    mine = fb.nn.MultiheadAttention(8, 2, **options)
    theirs = torch.nn.MultiheadAttention(8, 2, **options)
    k, v = options.get("kdim", 8), options.get("vdim", 8)
    check_module(mine, theirs, rand(3, 3, 8), rand(3, 3, k), rand(3, 3, v), need_weights=need_weights)


def test_multihead_attention_masks():
    mine, theirs = (
        fb.nn.MultiheadAttention(8, 2, batch_first=True),
        torch.nn.MultiheadAttention(8, 2, batch_first=True),
    )
    x = rand(2, 4, 8)
    causal = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
    padding = torch.tensor([[False, False, False, True], [False] * 4])
    copied = {"attn_mask": causal, "key_padding_mask": padding, "average_attn_weights": False}
    check_module(mine, theirs, x, x, x, **copied)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder(norm_first, activation):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first, "activation": activation}

    def make(nn):
        layer = nn.TransformerEncoderLayer(8, 2, 16, **options)
        return nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)

    check_module(make(fb.nn), make(torch.nn), rand(2, 5, 8), tol=5e-5)


def test_dropout_keeps_the_mean_and_the_gradient_has_the_same_mask():
    x = fb.ones(200, 300, requires_grad=True)
    layer = fb.nn.Dropout(0.3)
    y = layer(x)
    found = y.detach().numpy()
    assert sorted(set(found.reshape(-1).tolist())) == [0.0, pytest.approx(1 / 0.7)]
    assert abs((found == 0).mean() - 0.3) < 0.01
    y.sum().backward()
    assert (x.grad.numpy() == found).all()
    assert (layer(x).detach().numpy() != found).any()
    layer.eval()
    assert layer(x) is x


def test_channel_dropout_drops_whole_channels():
    y = fb.nn.Dropout2d(0.5)(fb.ones(20, 30, 4, 4)).numpy()
    assert ((y == 0).all((2, 3)) | (y == 2).all((2, 3))).all()
    assert 0.4 < (y[:, :, 0, 0] == 0).mean() < 0.6


def test_max_pool_indices():
    x = rand(2, 3, 6, 7)
    mine = fb.nn.MaxPool2d(3, 2, 1, return_indices=True)(ours(x))
    close(mine, torch.nn.MaxPool2d(3, 2, 1, return_indices=True)(x))


def test_activation_in_place_writes_its_input():
    x = ours(rand(3, 4, grad=False))
    y = fb.nn.ReLU(inplace=True)(x)
    assert (x >= 0).all().item() and (y == x).all().item()


def test_wrong_shapes_say_what_came():
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(4x6 and 5x3\)"):
        fb.nn.Linear(5, 3)(fb.ones(4, 6))
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 2 channels instead"):
        fb.nn.Conv2d(3, 4, 3)(fb.ones(1, 2, 5, 5))
    with pytest.raises(ValueError, match="expected 4D input"):
        fb.nn.BatchNorm2d(3)(fb.ones(2, 3))
