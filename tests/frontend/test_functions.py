"""Functions and methods against PyTorch, one line each."""

import pytest

import flambeau as fb
from tests.frontend.compare import both

PROGRAMS = """
x + y
x - 2
2 - x
x * 3.5
1 / x
x / y
x // 2
x % 3
-x
x ** 2
x ** 3
x ** 0.5 if False else abs(x) ** 0.5
2 ** x
i + 1.5
i * 2
i / 2
i // 2
-i // 2
i % 3
-i % 3
i.float() + m
m + m
m * i
m & (x > 0)
~m
i & 3
i | 1
i ^ 5
i << 2
i >> 1
x > y
x == x
i != 3
x.half() + x
x.bfloat16() * 2
x.double() + x
i.int() + i
i.short() * 1.5
t.tensor(2) + x
t.tensor(2.0, dtype=t.float64) * x
t.tensor(2.5) + i
x.exp()
x.abs().log()
x.abs().sqrt()
x.abs().rsqrt()
x.sin(); x.cos(); x.tan()
x.tanh()
x.sigmoid()
x.erf()
i.exp()
i.sqrt()
x.floor()
x.round()
x.trunc()
x.ceil()
i.floor()
x.sign()
x.square()
x.reciprocal()
x.relu()
t.isnan(x / 0 * 0)
t.isinf(x / 0)
x.clamp(-1, 1)
x.clamp(min=0)
x.clamp(max=y)
i.clamp(2, 5)
t.maximum(x, y)
t.minimum(x, i)
t.where(x > 0, x, y)
t.where(x > 0, 1.0, x)
t.where(x > 0, 1, 2)
t.lerp(x, y, 0.3)
t.addcmul(x, y, y, value=0.5)
t.add(x, y, alpha=2)
t.sub(x, y, alpha=0.5)
t.div(x, y, rounding_mode='floor')
t.div(i, 4, rounding_mode='trunc')
t.fmod(x, 1.5)
t.remainder(x, -1.5)
x.sum()
x.sum(0)
x.sum(-1, keepdim=True)
x.sum((0, 1))
i.sum()
m.sum()
x.mean()
x.mean(1)
i.mean()
x.var()
x.var(0)
x.std(1, unbiased=False)
x.std(1, keepdim=True)
x.prod()
x.prod(1)
x.max()
x.max(1)
x.min(0)
x.max(1, keepdim=True)
x.amax(1)
x.amin((0, 1))
x.argmax()
x.argmax(1)
x.argmin(0, keepdim=True)
m.any()
m.all(1)
m.any(0)
x.cumsum(0)
i.cumsum(1)
x.cumprod(1)
x.norm()
x.norm(dim=1)
x.norm(p=1)
x.norm(p=3, dim=0)
x.logsumexp(1)
x.logsumexp((0, 1))
t.softmax(x, 1)
t.log_softmax(x, 0)
x.sort(1)
x.sort(0, descending=True)
x.argsort(1)
x.topk(2)
x.topk(2, 0, largest=False)
x.median()
x.median(1).values
t.allclose(x, x + 1e-9)
t.equal(x, y)
x.matmul(x.t())
x @ x.mT
x.mm(y.t())
t.matmul(z, z.transpose(1, 2))
t.matmul(z, x.t())
t.bmm(z, z.mT)
x @ x[0]
x[0] @ x.t()
x[0].dot(y[0])
t.outer(x[0], y[1])
t.einsum('ij,kj->ik', x, y)
t.einsum('bij,bkj->bik', z, z)
t.einsum('ij->ji', x)
t.einsum('ij->', x)
t.einsum('ii->i', x @ x.t())
t.einsum('...ij,jk->...ik', z, x.t())
t.einsum('i,j,k->ijk', x[0], x[1], y[0])
t.addmm(x @ x.t(), x, y.t(), beta=0.5, alpha=2)
t.tensordot(z, x, ([2], [1]))
x @ y
x.view(-1)
x.view(4, 3)
x.view(2, -1)
x.reshape(6, 2)
x.t().reshape(-1)
x.t().view(-1)
x.view(5, 5)
z.permute(2, 0, 1)
z.transpose(0, 2)
z.flatten(1)
z.unsqueeze(1).squeeze()
z.unsqueeze(-1)
x.T
x[None].expand(2, 3, 4)
x.expand(2, -1, -1)
x.expand(3, 5)
x.narrow(1, 1, 2)
x.select(0, -1)
x.split(2)
x.split([1, 2], 0)
x.chunk(2, 1)
x.unbind(1)
x.diagonal()
x.diagonal(1)
x.diagonal(-1)
z.diagonal(0, 1, 2)
t.diag(x[0])
t.diag(x[0], 1)
t.cat([x, y])
t.cat([x, i], 1)
t.cat([x, z])
t.stack([x, y], 1)
t.stack([x, y], -1)
t.hstack([x, y])
t.vstack([x, y[0:1]])
x.repeat(2, 1)
x.repeat(2, 1, 2)
x.repeat_interleave(2, 1)
t.flip(x, [0])
x.flip(0, 1)
t.roll(x, 1, 0)
x.roll(2)
t.meshgrid(x[0], y[:, 0], indexing='ij')
t.meshgrid(x[0], y[:, 0], indexing='xy')
t.tril(x)
t.triu(x, 1)
z.movedim(0, 2)
z.unflatten(2, (2, 2))
x.unfold(1, 2, 1)
x[1]
x[-1, 2]
x[0:2]
x[:, 1]
x[..., -1]
x[None, :, None]
x[::2, 1::2]
x[[0, 2]]
x[t.tensor([0, -1])]
x[t.tensor([0, 1]), t.tensor([2, 3])]
x[:, t.tensor([[0, 1], [2, 3]])]
z[:, 1, t.tensor([0, 2])]
z[t.tensor([0, 1]), :, t.tensor([1, 2])]
x[x > 0]
x[m]
x[m.any(1)]
z[0, m]
x[5]
x[0, 0, 0]
x[:, 7]
x[t.tensor([7])]
x[True]
x.gather(1, t.tensor([[0, 1], [2, 3]]))
x.gather(0, t.tensor([[0, 1, 2, 0]]))
x.index_select(1, t.tensor([3, 0]))
x.scatter(1, t.tensor([[0, 1], [2, 3], [1, 0]]), y)
x.scatter(1, t.tensor([[0], [2], [1]]), 9.0)
x.scatter_add(0, t.tensor([[0, 0, 1, 1]]), y)
x.index_add(0, t.tensor([0, 0]), y[:2])
x.index_fill(0, t.tensor([1]), 5.0)
x.masked_fill(m, 0.5)
x.masked_select(m)
x.take_along_dim(x.argsort(1), 1)
t.nonzero(m)
m.nonzero(as_tuple=True)
t.arange(5)
t.arange(1, 10, 3)
t.arange(0, 1, 0.25)
t.arange(5, 0, -2)
t.linspace(0, 1, 7)
t.eye(3)
t.eye(2, 3)
t.zeros(2, 3)
t.ones((2, 3), dtype=t.int32)
t.full((2,), 7)
t.full((2,), 7.5)
t.zeros_like(i)
t.full_like(x, 3)
t.tensor([[1, 2], [3, 4]])
t.tensor([1, 2.5])
t.tensor([True, False])
t.tensor([])
t.tensor([[1], [2, 3]])
t.tensor([1, 2], dtype=t.float16)
x.new_zeros(2)
x.to(t.int32)
x.long()
m.float()
i.bool()
x.type()
x.dtype == t.float32
x.tolist()
i[0, 0].item()
x.shape[1], x.size(0), x.dim(), x.numel()
x.stride(), x.t().stride(), x[:, 1:].storage_offset(), x.t().is_contiguous()
t.result_type(i, 1.5) == t.float32
t.bincount(t.tensor([1, 1, 3]))
t.unique(t.tensor([3, 1, 1]))
t.isclose(x, y)
t.std(x)
t.var_mean(x, 1)
x.count_nonzero()
x.isfinite()
t.logical_and(m, x > 0)
t.logical_not(i)
t.atan2(x, y)
t.expm1(x)
t.log1p(x.abs())
t.log2(x.abs()); t.log10(x.abs())
t.asin(x / 4)
t.acos(x / 4)
t.sinh(x)
t.erfinv(x / 4)
t.lgamma(x.abs() + 1)
t.nan_to_num(x / 0)
x.square().sum().sqrt().item() > 0
m - m
-m
x.add_(i); x
i.add_(x)
t.broadcast_to(x[0], (2, 4))
x.sum(5)
t.trace(x)
x.aminmax() if False else x.amax()
(x + y).t().contiguous().view(-1)
t.cumsum(m, 0)
t.addcdiv(x, y, y + 5)
""".strip().split("\n")


@pytest.mark.parametrize("line", PROGRAMS)
def test_function(line: str) -> None:
    def program(t):  # type: ignore[no-untyped-def]
        x = t.tensor([[0.5, -1.25, 2.0, 3.5], [-0.75, 1.0, -2.5, 0.25], [1.75, -3.0, 0.125, 2.25]])
        y = t.tensor([[1.5, 0.25, -2.0, 3.0], [0.75, -1.5, 2.5, 1.25], [-0.5, 2.0, 1.0, -4.0]])
        names = {
            "t": t,
            "x": x,
            "y": y,
            "i": t.arange(12).reshape(3, 4),
            "m": t.tensor(
                [[True, False, True, True], [False, False, False, False], [False, True, False, True]]
            ),
            "z": t.stack([x, y]),
        }
        *first, last = [part.strip() for part in line.split(";") if part.strip()]
        for part in first:
            eval(part, names)
        return eval(last, names)

    both(program)


def test_number_of_threads() -> None:
    before = fb.get_num_threads()
    try:
        fb.set_num_threads(3)
        assert fb.get_num_threads() == 3
        with pytest.raises(ValueError, match="from 1 to"):
            fb.set_num_threads(0)
    finally:
        fb.set_num_threads(before)
