"""The op as torch sees it: opcheck, compile, and the errors that it raises."""

import pytest
import torch

import lcc_kernels as lk
from tests.lcc_kernels.shared_prefix.batches import batch

SHAPES = {"q": (2, 4, 1, 8), "shared_k": (2, 5, 8), "shared_v": (2, 5, 8), "own_k": (2, 2, 6, 8), "own_v": (2, 2, 6, 8)}
LENGTHS = torch.tensor([6, 3])


def arguments(**changed):
    """The op's arguments on the CPU; shapes, or whole tensors, as ``changed``."""
    made = {name: torch.zeros(shape) for name, shape in SHAPES.items()} | {"own_lengths": LENGTHS}
    return made | {name: torch.zeros(x) if isinstance(x, tuple) else x for name, x in changed.items()}


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("every", [False, True], ids=["no option", "every option"])
def test_opcheck(backend, every):
    inputs = batch((5, 2), q_len=2, starts=(1, 2) if every else None, biased=every)
    prefixes = torch.tensor([7, 3]), torch.tensor([0, 16])
    tensors = inputs.q, *inputs.shared, *inputs.own, inputs.lengths
    options = (inputs.starts, *prefixes, inputs.bias, 0.5, True, 2) if every else (*[None] * 4, 0.5, False, None)
    torch.library.opcheck(torch.ops.lcc_kernels.shared_prefix_attention.default, (*tensors, *options, backend))


def test_compiles_whole_and_new_lengths_do_not_recompile():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    def attend(q, *rest):
        return lk.shared_prefix_attention(2 * q, *rest)

    compiled = torch.compile(attend, fullgraph=True, backend=count)
    for longest in (5, 7, 11, 13, 17):
        inputs = batch((longest, 4), shared=3 * longest)
        tensors = inputs.q, *inputs.shared, *inputs.own, inputs.lengths
        assert torch.equal(compiled(*tensors), attend(*tensors))
    assert len(graphs) <= 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": (2, 4, 8)}, "q must be"),
        ({"shared_v": (2, 4, 8)}, "q must be"),
        ({"shared_k": (2, 5, 4), "shared_v": (2, 5, 4)}, "q must be"),
        ({"own_v": (2, 2, 5, 8)}, "q must be"),
        ({"own_k": (3, 2, 6, 8), "own_v": (3, 2, 6, 8)}, "q must be"),
        ({"own_k": (2, 4, 6, 8), "own_v": (2, 4, 6, 8)}, "q must be"),
        ({"q": (2, 3, 1, 8)}, "kv_heads must divide heads; got 3 heads and 2"),
        ({"shared_k": torch.zeros(SHAPES["shared_k"], dtype=torch.float16)}, "share a floating dtype"),
        ({"own_v": torch.zeros(SHAPES["own_v"], device="meta")}, "own_v.*on meta"),
        ({"q": torch.zeros(SHAPES["q"], requires_grad=True)}, "no gradient: call it under torch.no_grad"),
        ({"own_lengths": torch.tensor([6, 3, 1])}, r"own_lengths must be \(2,\)"),
        ({"own_lengths": torch.tensor([6.0, 3.0])}, "int32 or int64"),
        ({"own_lengths": torch.tensor([7, 3])}, "sequence 0 owns 7 rows from row 0 on, and own_k holds rows 0 ... 5"),
        ({"own_lengths": torch.tensor([6, -1])}, "sequence 1 owns -1 rows"),
        ({"own_starts": torch.tensor([0, 4])}, "sequence 1 owns 3 rows from row 4 on"),
        ({"own_starts": torch.tensor([-1, 0])}, "from row -1 on"),
        ({"own_starts": torch.tensor([0])}, r"own_starts must be \(2,\)"),
        ({"shared_starts": LENGTHS}, "give shared_lengths too"),
        ({"shared_lengths": torch.tensor([5])}, r"shared_lengths must be \(2,\)"),
        ({"shared_lengths": torch.tensor([5.0, 3.0])}, "int32 or int64"),
        ({"shared_lengths": LENGTHS, "shared_starts": LENGTHS[:, None]}, r"shared_starts must be \(2,\)"),
        ({"shared_lengths": torch.tensor([5, 6])}, "sequence 1 has 6 rows from row 0 on for its prefix"),
        ({"shared_lengths": torch.tensor([5, -1])}, "sequence 1 has -1 rows"),
        ({"shared_lengths": torch.tensor([4, 3]), "shared_starts": torch.tensor([2, 0])}, "sequence 0 has 4 rows from"),
        ({"shared_lengths": torch.tensor([4, 3]), "shared_starts": torch.tensor([-1, 0])}, "from row -1 on"),
        ({"shared_bias": torch.zeros(5)}, r"shared_bias must be \(2, 5\), float32"),
        ({"shared_bias": torch.zeros(2, 5).double()}, "float32"),
        ({"shared_bias": torch.zeros(2, 5, device="meta")}, "on meta"),
        ({"shared_bias": torch.zeros(2, 5, requires_grad=True)}, "detach shared_bias"),
        ({"return_entropy": True, "sinks": -1}, "0 or more, got -1"),
        ({"sinks": 3}, "sinks are keys that the entropy leaves out: pass return_entropy=True"),
        ({"backend": "cuda"}, "has no backend 'cuda'"),
    ],
)
def test_refuses(changed, message):
    backend = {"backend": changed.pop("backend", "auto")}
    with pytest.raises(ValueError, match=message):
        lk.shared_prefix_attention(**arguments(**changed), **backend)


def test_runs_on_parameters_without_gradients():
    with torch.no_grad():
        out = lk.shared_prefix_attention(**arguments(q=torch.ones(SHAPES["q"], requires_grad=True)))
    assert out.shape == SHAPES["q"]


def test_empty_batches_and_no_queries():
    assert lk.shared_prefix_attention(**arguments(q=(2, 4, 0, 8))).shape == (2, 4, 0, 8)
    none = {name: shape if name.startswith("shared") else (0, *shape[1:]) for name, shape in SHAPES.items()}
    out = lk.shared_prefix_attention(**arguments(**none, own_lengths=LENGTHS[:0]))
    assert out.shape == (0, 4, 1, 8)
    _, lse, entropy = lk.shared_prefix_attention(
        **arguments(q=(2, 4, 0, 8)), return_lse=True, return_entropy=True, shared_lengths=LENGTHS - 1
    )
    assert lse.shape == entropy.shape == (2, 4, 0)
