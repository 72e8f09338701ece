"""Sources that the tests of the command line compile."""

SOURCE = """
import flambeau as torch
from flambeau import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
net.example_inputs = (torch.zeros(2, 8),)


def square(x):
    return x * x, (x + 1).sum()


def factory():
    return nn.Linear(4, 2), (torch.zeros(1, 4),)


class Doubling(nn.Module):
    example_inputs = (torch.zeros(3),)

    def forward(self, x):
        return x * 2


s = torch.ones(4, requires_grad=True)


def step(x):
    s.grad = None
    loss = ((s - x) ** 2).sum()
    loss.backward()
    with torch.no_grad():
        s.sub_(0.1 * s.grad)
    return loss


step.example_inputs = (torch.zeros(4),)
"""

TEXT = """"builtin.module"() ({
  "func.func"() <{function_type = (tensor<3xf32>) -> tensor<3xf32>, sym_name = "twice"}> ({
  ^bb0(%0: tensor<3xf32>):
    %1 = "graph.add"(%0, %0) : (tensor<3xf32>, tensor<3xf32>) -> tensor<3xf32>
    %2 = "graph.relu"(%1) : (tensor<3xf32>) -> tensor<3xf32>
    "func.return"(%2) : (tensor<3xf32>) -> ()
  }) : () -> ()
}) : () -> ()
"""
