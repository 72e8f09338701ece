"""A compiled training step with an optimizer does what the same step does without compiling."""

import pytest

import flambeau as fb


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_compiled_training(name):
    def run(compiled):
        fb.manual_seed(0)
        model = fb.nn.Sequential(fb.nn.Linear(3, 4), fb.nn.Tanh(), fb.nn.Linear(4, 1))
        opt = getattr(fb.optim, name)(model.parameters(), lr=0.05)

        def step(x, y):
            opt.zero_grad()
            loss = fb.nn.functional.mse_loss(model(x), y)
            loss.backward()
            opt.step()
            return loss

        call = fb.compile(step) if compiled else step
        x, losses = fb.randn(8, 3), []
        for i in range(5):
            opt.param_groups[0]["lr"] = 0.05 / (i + 1)
            losses.append(call(x, x.sum(1, keepdim=True)).item())
        return losses

    assert run(True) == pytest.approx(run(False), rel=1e-4)
