"""Teachers that people bring."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch_geometric.nn import GCNConv

from limbeck.errors import TeacherError
from limbeck.evaluation.distill import distill
from limbeck.graphs.view import make_view
from limbeck.teachers import Teacher, knowledge_from
from limbeck.testing import small_graph


class OwnGCN(torch.nn.Module):
    """A user's network: plain PyG."""

    def __init__(self, out_channels: int = 3) -> None:
        super().__init__()
        self.conv = GCNConv(12, out_channels)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.conv(x, edge_index)


class ReturnsAPair(torch.nn.Module):
    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x, None


@pytest.fixture
def view():
    return make_view(small_graph(), "inductive", 0)


@pytest.fixture
def logits():
    return torch.randn(120, 3, generator=torch.Generator().manual_seed(0))


def test_a_module_is_asked_on_the_right_graphs(view):
    torch.manual_seed(0)
    module = OwnGCN().train()
    teacher = Teacher(module).fitted(view)
    assert teacher.name == "OwnGCN"
    with torch.no_grad():
        module.eval()
        observed = module(view.observed.x, view.observed.edge_index)
        full = module(view.everything.x, view.everything.edge_index)
        alone = module(view.without_new_edges.x, view.without_new_edges.edge_index)
    assert torch.equal(teacher.knowledge.logits, observed)
    assert torch.equal(teacher.answers.unseen, full[view.num_observed :])
    assert torch.equal(teacher.answers.isolated, alone[view.num_observed :])
    assert teacher.knowledge.hidden == {}


def test_a_module_distils(view):
    torch.manual_seed(0)
    run = distill(view, OwnGCN(), "glnn", max_epochs=5)
    assert run.teacher.name == "OwnGCN"
    assert run.scores["teacher"]["test_accuracy"] is not None


def test_a_module_from_a_file(view, tmp_path):
    torch.manual_seed(0)
    module = OwnGCN()
    torch.save(module, tmp_path / "teacher.pt")
    loaded = Teacher.from_file(tmp_path / "teacher.pt").fitted(view)
    assert torch.equal(loaded.knowledge.logits, Teacher(module).fitted(view).knowledge.logits)


def test_files_that_hold_no_module(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "state.pt")
    with pytest.raises(TeacherError, match=r"state.pt holds a dict, not a module"):
        Teacher.from_file(tmp_path / "state.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a teacher")
    with pytest.raises(TeacherError, match=r"noise.pt: not a teacher that can be read"):
        Teacher.from_file(tmp_path / "noise.pt")
    with pytest.raises(TeacherError, match=r"missing.pt: not a teacher that can be read"):
        Teacher.from_file(tmp_path / "missing.pt")


def test_modules_whose_answer_does_not_fit(view):
    with pytest.raises(TeacherError, match=r"shape \(116, 5\), but the graph asks for \(116, 3\)"):
        Teacher(OwnGCN(5)).fitted(view)
    with pytest.raises(TeacherError, match="returned tuple; it must return the logits"):
        Teacher(ReturnsAPair()).fitted(view)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".parquet"])
def test_logits_from_files_agree(view, logits, tmp_path, suffix):
    path = tmp_path / f"logits{suffix}"
    if suffix == ".npy":
        np.save(path, logits.numpy())
    elif suffix == ".npz":
        np.savez(path, logits=logits.numpy(), other=np.zeros(2))
    elif suffix == ".pt":
        torch.save(logits, path)
    else:
        columns = {f"class {i}": logits[:, i].numpy() for i in range(3)}
        pq.write_table(pa.table(columns), path)
    teacher = knowledge_from(path).fitted(view)
    assert torch.equal(teacher.knowledge.logits, logits[view.nodes[: view.num_observed]])
    assert torch.equal(teacher.answers.unseen, logits[view.nodes[view.num_observed :]])


def test_parquet_rows_and_columns_in_another_order(view, logits, tmp_path):
    order = torch.randperm(120)
    shuffled = {"id": order.numpy()}
    for i in (2, 0, 1):
        shuffled[f"class {i}"] = logits[order, i].numpy()
    pq.write_table(pa.table(shuffled), tmp_path / "logits.parquet")
    teacher = knowledge_from(tmp_path / "logits.parquet").fitted(view)
    assert torch.equal(teacher.knowledge.logits, logits[view.nodes[: view.num_observed]])


def test_unseen_rows_may_be_nan(view, logits):
    logits[view.nodes[view.test_unseen]] = float("nan")
    teacher = knowledge_from(logits).fitted(view)
    assert teacher.answers.unseen is None
    run = distill(view, knowledge_from(logits), "glnn", max_epochs=2)
    assert run.scores["teacher"] is None
    assert run.scores["student"]["agreement"] is None


def test_bad_logits(view, logits, tmp_path):
    with pytest.raises(TeacherError, match=r"shape \(120, 2\), but the graph asks for \(120, 3\)"):
        knowledge_from(logits[:, :2]).fitted(view)
    with pytest.raises(TeacherError, match=r"shape \(119, 3\)"):
        knowledge_from(logits[:119]).fitted(view)
    logits[view.nodes[0], 1] = float("nan")
    with pytest.raises(TeacherError, match="hold NaN or infinity"):
        knowledge_from(logits).fitted(view)
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(TeacherError, match="arrays a, b: name the one to use 'logits'"):
        knowledge_from(tmp_path / "two.npz")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(TeacherError, match=r"cut.npy: logits cannot be read"):
        knowledge_from(tmp_path / "cut.npy")
    with pytest.raises(TeacherError, match=r"logits.txt: logits are read from .npy"):
        knowledge_from(tmp_path / "logits.txt")
    pq.write_table(pa.table({"id": [0], "a": ["x"]}), tmp_path / "text.parquet")
    with pytest.raises(TeacherError, match="column 'a' is string, not a number per class"):
        knowledge_from(tmp_path / "text.parquet")
    columns = {"id": np.arange(1, 121), **{f"class {i}": np.zeros(120) for i in range(3)}}
    pq.write_table(pa.table(columns), tmp_path / "ids.parquet")
    with pytest.raises(TeacherError, match="there is no row for node 0"):
        knowledge_from(tmp_path / "ids.parquet").fitted(view)
