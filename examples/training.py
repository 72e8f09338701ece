"""Training: a small network learns two interleaved spirals, and the whole step is one compiled function."""

import math
import time

import flambeau as fb
from flambeau import nn, optim

fb.manual_seed(0)

# Two spirals of 200 points each, class 0 and class 1.
angle = fb.linspace(0.5, 3 * math.pi, 200)
arm = fb.stack([angle * fb.cos(angle), angle * fb.sin(angle)], dim=1) / 10
points = fb.cat([arm, -arm]) + 0.01 * fb.randn(400, 2)
classes = fb.cat([fb.zeros(200, dtype=fb.int64), fb.ones(200, dtype=fb.int64)])

model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
optimizer = optim.Adam(model.parameters(), lr=5e-3)


@fb.compile
def step(points, classes):
    """Forward, loss, backward, update: one executable, found again at the second call."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(points), classes)
    loss.backward()
    optimizer.step()
    return loss.detach()


first = step(points, classes).item()
step(points, classes)
started = time.perf_counter()
for number in range(400):
    loss = step(points, classes).item()
    if number % 100 == 99:
        print(f"step {number + 1}: loss {loss:.4f}")
print(f"{1e6 * (time.perf_counter() - started) / 400:.0f} µs a step")

with fb.no_grad():
    accuracy = (model(points).argmax(dim=1) == classes).float().mean().item()
print(f"loss {first:.4f} → {loss:.4f}, accuracy {accuracy:.1%}")
assert loss < first / 5
assert accuracy > 0.95
