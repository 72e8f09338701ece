"""Tensors and derivatives: views, in-place writes, gradients of any order, a minimum by Newton's method."""

import flambeau as fb

# A tensor prints as it does in PyTorch, and slices are views: writing to one changes the tensor that it shows.
x = fb.arange(12.0).reshape(3, 4)
x[1] *= 10
x.t()[0] = -1
print(x)

# y = x² + 3x, and its derivative 2x + 3 where x = 3.
x = fb.tensor(3.0, requires_grad=True)
y = x**2 + 3 * x
y.backward()
print(f"y = {y.item()}, dy/dx = {x.grad.item()}")
assert x.grad.item() == 9

# A derivative is a graph like any other, so it can be differentiated again: Newton's method on a polynomial.
at = fb.tensor(3.0, requires_grad=True)
for step in range(8):
    f = at**4 - 3 * at**2 + at
    (slope,) = fb.autograd.grad(f, at, create_graph=True)
    (curvature,) = fb.autograd.grad(slope, at)
    with fb.no_grad():
        at -= slope / curvature
    print(f"step {step}: x = {at.item():.6f}, slope {slope.item():+.2e}")
assert abs(slope.item()) < 1e-4

# Nothing was computed before it was looked at, and a graph of known structure was not compiled again.
print(fb.stats())
