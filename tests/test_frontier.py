import torch
from torch import nn

from hwprune.capture import capture
from hwprune.frontier import Frontier


class InPlace(nn.Module):
    """What one node writes to, another has read before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        return x.relu_() + y, y


def test_the_rest_can_be_run_as_often_as_asked() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(2, 4), torch.randn(3, 4)]
    program = capture(InPlace().eval(), (batches[0],))
    wanted = [program.module(x) for x in batches]
    frontier = Frontier(program.module, [(x,) for x in batches])
    linears = [n.name for n in program.module.graph.nodes if "linear" in n.name]
    for place in (frozenset(), frozenset(linears[1:]), frozenset(linears)):
        frontier.advance(place)
        for _ in range(2):
            for number, outputs in enumerate(wanted):
                found = frontier.finish(number)
                assert all(torch.equal(a, b) for a, b in zip(found, outputs, strict=True))


def test_what_a_node_reads_can_be_changed() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval(), torch.randn(2, 4)
    program = capture(net, (x,))
    frontier = Frontier(program.module, [(x,)])
    second = [n.name for n in program.module.graph.nodes if "linear" in n.name][1]
    frontier.advance(frozenset([second]))
    found = frontier.finish(0, {second: lambda value: 2 * value})
    torch.testing.assert_close(found, net[1](2 * net[0](x)))


def test_what_nodes_read_can_be_looked_at() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4)
    program = capture(net, (x,))
    frontier = Frontier(program.module, [(x,)])
    names = [n.name for n in program.module.graph.nodes if n.op == "call_function"]
    frontier.advance(frozenset(names[:1]))
    for _ in range(2):  # and the frontier stays where it is
        found = dict(frontier.look(0, frozenset(names[1:])))
        assert found.keys() == set(names[1:])
        torch.testing.assert_close(found[names[1]], net[0](x))
        torch.testing.assert_close(found[names[2]], net[1](net[0](x)))
