"""Networks, written against PyTorch's interface: `m` is torch or flambeau."""

from __future__ import annotations

from typing import Any

Module = Any


def mlp(m: Any) -> Module:
    """784-512-512-10."""
    nn = m.nn
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def _normed(m: Any, i: int, o: int, window: int, stride: int = 1, groups: int = 1) -> list[Module]:
    nn = m.nn
    return [
        nn.Conv2d(i, o, window, stride, window // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
    ]


def resnet(m: Any, blocks: tuple[int, ...], bottleneck: bool, classes: int = 1000) -> Module:
    """ResNet-18 with (2, 2, 2, 2), ResNet-50 with (3, 4, 6, 3) and bottlenecks. He et al. 2016."""
    nn = m.nn

    class Block(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, i: int, c: int, stride: int) -> None:
            super().__init__()
            o = 4 * c if bottleneck else c
            if bottleneck:
                body = [
                    *_normed(m, i, c, 1),
                    nn.ReLU(),
                    *_normed(m, c, c, 3, stride),
                    nn.ReLU(),
                    *_normed(m, c, o, 1),
                ]
            else:
                body = [*_normed(m, i, c, 3, stride), nn.ReLU(), *_normed(m, c, c, 3)]
            self.body = nn.Sequential(*body)
            self.short = (
                nn.Sequential(*_normed(m, i, o, 1, stride)) if stride > 1 or i != o else nn.Identity()
            )
            self.relu = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu(self.body(x) + self.short(x))

    layers = [*_normed(m, 3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    i = 64
    for stage, (count, c) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
        for number in range(count):
            layers.append(Block(i, c, 2 if stage and not number else 1))
            i = 4 * c if bottleneck else c
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, classes))


def mobilenet(m: Any) -> Module:
    """Inverted bottlenecks with depthwise convolutions, as MobileNet-v2. Sandler et al. 2018."""
    nn = m.nn

    class Block(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, i: int, o: int, stride: int, grow: int) -> None:
            super().__init__()
            c = i * grow
            widen = [*_normed(m, i, c, 1), nn.ReLU6()] if grow > 1 else []
            self.body = nn.Sequential(
                *widen, *_normed(m, c, c, 3, stride, c), nn.ReLU6(), *_normed(m, c, o, 1)
            )
            self.joins = stride == 1 and i == o

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.joins else self.body(x)

    layers, i = [*_normed(m, 3, 32, 3, 2), nn.ReLU6()], 32
    plan = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for grow, o, count, stride in plan:
        for number in range(count):
            layers.append(Block(i, o, stride if not number else 1, grow))
            i = o
    layers += [
        *_normed(m, i, 1280, 1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, 1000),
    ]
    return nn.Sequential(*layers)


def transformer(m: Any, width: int, layers: int, heads: int, causal: bool) -> Module:
    """Blocks of attention and GELU layers with norms before (GPT-2) or, without `causal`, an encoder of the same blocks."""
    nn, F = m.nn, m.nn.functional

    class Block(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, s, _ = x.shape
            qkv = self.qkv(self.ln1(x)).view(b, s, 3, heads, width // heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
            x = x + self.proj(y.transpose(1, 2).reshape(b, s, width))
            return x + self.out(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))

    return nn.Sequential(*[Block() for _ in range(layers)], nn.LayerNorm(width))


def gpt(
    m: Any, vocabulary: int = 50257, context: int = 1024, width: int = 768, layers: int = 12, heads: int = 12
) -> Module:
    """GPT-2 small by default; the head is the embedding's transpose."""
    nn = m.nn

    class GPT(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
            self.blocks = transformer(m, width, layers, heads, True)

        def forward(self, index: Any) -> Any:
            x = self.tokens(index) + self.places(m.arange(index.shape[1]))
            return self.blocks(x) @ self.tokens.weight.t()

    return GPT()


def gpt_decoder(m: Any, width: int = 768, layers: int = 12, heads: int = 12) -> Module:
    """GPT-2 small for one token after others, whose keys and values come as (layers, 2, batch, heads, length, width).

    Gives the token's logits and its own keys and values, which the caller appends.
    """
    nn, F = m.nn, m.nn.functional

    class Decoder(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = gpt(m, width=width, layers=layers, heads=heads)

        def forward(self, index: Any, past: Any) -> Any:
            net, length, kept = self.net, past.shape[4], []
            x = net.tokens(index) + net.places(m.arange(length, length + 1))
            for number in range(layers):
                block = net.blocks[number]
                b, s, _ = x.shape
                qkv = block.qkv(block.ln1(x)).view(b, s, 3, heads, width // heads)
                q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
                kept += [k, v]
                k, v = m.cat([past[number, 0], k], 2), m.cat([past[number, 1], v], 2)
                y = F.scaled_dot_product_attention(q, k, v)
                x = x + block.proj(y.transpose(1, 2).reshape(b, s, width))
                x = x + block.out(F.gelu(block.fc(block.ln2(x)), approximate="tanh"))
            return net.blocks[layers](x) @ net.tokens.weight.t(), m.stack(kept)

    return Decoder()


def lstm(m: Any) -> Module:
    """64 -> 256 over (batch, steps, 64); gives every step's state."""
    nn = m.nn

    class Steps(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(64, 256, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.cells(x)[0]

    return Steps()


def lstm_classifier(m: Any) -> Module:
    """Ten classes from the last state of an LSTM."""
    nn = m.nn

    class Classifier(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.head = lstm(m), nn.Linear(256, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.steps(x)[:, -1])

    return Classifier()


def unet(m: Any) -> Module:
    """Three levels with skips, transposed convolutions on the way up."""
    nn = m.nn

    def twice(i: int, o: int) -> Module:
        return nn.Sequential(*_normed(m, i, o, 3), nn.ReLU(), *_normed(m, o, o, 3), nn.ReLU())

    class UNet(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.down1, self.down2, self.middle = twice(3, 32), twice(32, 64), twice(64, 128)
            self.up2, self.up1 = nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
            self.join2, self.join1 = twice(128, 64), twice(64, 32)
            self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(32, 2, 1)

        def forward(self, x: Any) -> Any:
            a = self.down1(x)
            b = self.down2(self.pool(a))
            c = self.middle(self.pool(b))
            b = self.join2(m.cat([self.up2(c), b], 1))
            return self.head(self.join1(m.cat([self.up1(b), a], 1)))

    return UNet()
