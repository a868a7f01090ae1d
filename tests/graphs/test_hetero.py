"""Graphs with several types of nodes: what views, students and files make of them."""

import gzip

import pytest
import torch
from torch_geometric.data import HeteroData

import limbeck
from limbeck.errors import GraphError
from limbeck.graphs.datasets import load_dataset
from limbeck.graphs.hetero import labelled_graph
from limbeck.graphs.load import load_graph
from limbeck.graphs.minimag import MiniMag, make_minimag
from limbeck.graphs.splits import split_nodes
from limbeck.graphs.view import SETTINGS, make_view

SIZE = MiniMag(400, institutions=0.05, areas=2, schools=2, classes=3)


@pytest.fixture
def graph() -> HeteroData:
    return load_graph(make_minimag(SIZE))


def films() -> HeteroData:
    """Two directors and four films; the third director has none."""
    graph = HeteroData()
    graph["film"].x = torch.eye(4)
    graph["film"].y = torch.tensor([0, 1, 0, 1])
    graph["director"].num_nodes = 3
    graph["film", "by", "director"].edge_index = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 0]])
    return graph


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_unobserved_is_in_the_observed_graph(graph, setting):
    view = make_view(graph, setting, seed=1)
    hetero, given = view.observed.hetero, view.nodes[: view.num_observed]
    assert torch.equal(hetero["paper"].x, graph["paper"].x[given])
    assert torch.equal(hetero["author"].x, graph["author"].x)
    observed = set(given.tolist())
    for relation in graph.edge_types:
        source_is, goal_is = relation[0] == "paper", relation[2] == "paper"
        inside = {
            (a, b)
            for a, b in graph[relation].edge_index.t().tolist()
            if (not source_is or a in observed) and (not goal_is or b in observed)
        }
        source, goal = hetero[relation].edge_index
        source = view.nodes[source] if source_is else source
        goal = view.nodes[goal] if goal_is else goal
        assert set(zip(source.tolist(), goal.tolist(), strict=True)) == inside
    hidden = torch.ones(view.num_observed, dtype=torch.bool)
    hidden[torch.cat([view.train, view.val])] = False
    assert (view.observed.y[hidden] == -1).all()


def test_new_nodes_without_edges_have_none_in_any_relation(graph):
    view = make_view(graph, "cold-start", 0)
    hetero = view.without_new_edges.hetero
    assert len(hetero["paper"].x) == 400
    for relation in hetero.edge_types:
        for end, kind in enumerate((relation[0], relation[2])):
            if kind == "paper":
                assert int(hetero[relation].edge_index[end].max()) < view.num_observed
        here = view.observed.hetero[relation].edge_index
        assert torch.equal(hetero[relation].edge_index, here)


def test_training_sees_no_change_of_unseen_nodes_or_test_labels(graph):
    before = make_view(graph, "inductive", 0)
    unseen = before.nodes[before.test_unseen]
    graph["paper"].x[unseen] += 1
    graph["paper"].y[graph["paper"].test_mask] = 0
    writes = graph["author", "writes", "paper"].edge_index
    touched = torch.isin(writes[1], unseen)
    writes[0, touched] = (writes[0, touched] + 1) % 300
    after = make_view(graph, "inductive", 0)
    assert after.fingerprint == before.fingerprint
    assert after.evaluation_fingerprint != before.evaluation_fingerprint
    graph["institution"].x += 1  # of another type: always observed
    assert make_view(graph, "inductive", 0).fingerprint != before.fingerprint


def test_students_get_relations_within_the_target_or_paths_of_two_steps(graph):
    assert load_graph(graph).info.notes["target"] == "paper"
    data = labelled_graph(graph)
    assert data.info.notes["neighbors"] == "paper-cites-paper"
    assert data.num_edges == graph["paper", "cites", "paper"].num_edges
    by_director = labelled_graph(load_graph(films()))
    assert by_director.info.notes["neighbors"] == "two steps through director"
    pairs = {tuple(pair) for pair in by_director.edge_index.t().tolist()}
    assert pairs == {(0, 1), (1, 0), (0, 3), (3, 0), (1, 3), (3, 1)}


def test_paths_that_are_too_many_are_left_out(monkeypatch):
    monkeypatch.setattr("limbeck.graphs.hetero.MAX_PATHS", 9)  # 3² + 1²
    data = labelled_graph(load_graph(films()))
    assert (data.num_edges, data.info.notes["neighbors"]) == (0, "none")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g["film"].pop("y"), "labels 'y' for no type of nodes"),
        (lambda g: setattr(g["director"], "y", torch.zeros(3)), "'film' and 'director'"),
        (lambda g: g["film"].pop("x"), "no node features"),
        (lambda g: g["director"].pop("num_nodes"), "neither features 'x' nor 'num_nodes'"),
        (lambda g: g["film", "by", "director"].edge_index.add_(2), "names node 5, expected 0 to 3"),
        (lambda g: setattr(g["film", "by", "director"], "edge_index", 1), r"torch.int64 \[2, E\]"),
        (lambda g: setattr(g["film"], "train_mask", torch.ones(4).bool()), "train_mask only"),
    ],
)
def test_an_unusable_graph_is_refused_in_one_sentence(spoil, message):
    graph = films()
    spoil(graph)
    with pytest.raises(GraphError, match=message) as raised:
        load_graph(graph)
    assert str(raised.value).count("\n") == 0


def test_minimag_is_what_its_plan_says():
    graph = make_minimag("small")
    counts = {kind: graph[kind].num_nodes for kind in graph.node_types}
    assert counts == {"paper": 4000, "author": 3000, "institution": 120, "field": 280}
    assert len(graph.edge_types) == 7
    papers = graph["paper"]
    assert len(papers.y.unique()) == 18
    assert [int(papers[f"{m}_mask"].sum()) for m in ("train", "val", "test")] == [3200, 400, 400]
    assert bool(papers.test_mask[-400:].all())  # by time
    again = make_minimag("small")
    assert torch.equal(again["field"].x, graph["field"].x)
    writes = graph["author", "writes", "paper"]
    assert writes.num_edges / 4000 == pytest.approx(2.5, abs=0.1)  # 1 + Poisson(1.5)


def test_minimag_cites_older_papers_of_the_same_kind_more_often_than_by_chance():
    plan = MiniMag(2000, classes=36, right_citation=0.9)
    graph = make_minimag(plan)
    source, goal = graph["paper", "cites", "paper"].edge_index
    same = (graph["paper"].y[source] == graph["paper"].y[goal]).float().mean()
    assert float(same) > 0.6  # 36 cells, one class each: 3 % by chance
    assert float(torch.bincount(source, minlength=2000)[0]) > 0  # made undirected


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]))


def tables(folder):
    write(
        folder / "papers.csv",
        "id,venue,fold,pages,open",
        *["p1,a,train,3,1", "p2,b,train,5,0", "p3,a,val,7,1", "p4,b,test,9,0"],
    )
    write(folder / "authors.csv", "name,age", "ann,30", "bob,50")
    write(folder / "places.csv", "id", "x", "y")
    write(folder / "writes.csv", "author,paper", "ann,p1", "ann,p2", "bob,p3", "bob,p3")
    write(folder / "cites.csv", "source,target", "p4,p1")
    write(folder / "at.csv", "source,target", "ann,x")
    write(
        folder / "hetero.yaml",
        "target: paper",
        "nodes:",
        "  paper: {table: papers.csv, label: venue}",
        "  author: {table: authors.csv, id: name}",
        "  place: {table: places.csv}",
        "edges:",
        "  - {table: writes.csv, from: author, relation: writes, to: paper, source: author,"
        " target: paper}",
        "  - {table: cites.csv, from: paper, relation: cites, to: paper}",
        "  - {table: at.csv, from: author, relation: at, to: place}",
    )
    return folder


def test_own_tables(tmp_path):
    graph = load_graph(tables(tmp_path))
    assert graph.info.class_names == ("a", "b")
    assert graph.info.node_ids.tolist() == ["p1", "p2", "p3", "p4"]
    assert graph["paper"].y.tolist() == [0, 1, 0, 1]
    assert split_nodes(graph, 0).test.tolist() == [3]
    assert graph["author"].x.flatten().tolist() == [-1, 1]  # standardised
    assert "x" not in graph["place"]
    assert graph["place"].num_nodes == 2
    # an edge given twice is kept once, and each relation has its reverse
    writes = graph["author", "writes", "paper"].edge_index
    assert writes.t().tolist() == [[0, 0], [0, 1], [1, 2]]
    assert torch.equal(graph["paper", "rev_writes", "author"].edge_index.flip(0), writes)
    assert graph["paper", "cites", "paper"].edge_index.t().tolist() == [[0, 3], [3, 0]]
    view = make_view(graph, "transductive", 0)
    assert view.observed.x.mean(0).abs().max() < 1e-6  # scaled by the view
    assert torch.equal(view.observed.hetero["paper"].x, view.observed.x)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target: paper", "target: article", "'article' is not among the types"),
        ("to: place", "to: town", "'town' is not among the types"),
        ("{table: places.csv}", "{table: places.csv, label: id}", "is not the target"),
        ("relation: at", "kind: at", "Field required"),
        ("at.csv", "is.csv", "is.csv"),
        ("nodes:", "nodes: [", "not YAML"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_sentence(tmp_path, old, new, message):
    plan = tables(tmp_path) / "hetero.yaml"
    plan.write_text(plan.read_text().replace(old, new))
    with pytest.raises(GraphError, match=message) as raised:
        load_graph(tmp_path)
    assert "\n" not in str(raised.value)


def test_an_edge_of_an_unknown_node_is_refused(tmp_path):
    write(tables(tmp_path) / "at.csv", "source,target", "eve,x")
    with pytest.raises(GraphError, match=r"names node 'eve' in row 0 .*authors.csv"):
        load_graph(tmp_path)


def write_gz(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


def test_ogbn_mag_in_the_layout_of_ogb(tmp_path):
    pytest.importorskip("ogb", reason="an extra")
    folder = tmp_path / "ogbn_mag"
    raw, kinds = folder / "raw", "author,field_of_study,institution,paper"
    write_gz(raw / "num-node-dict.csv.gz", kinds, "2,1,1,4")
    edges = {
        ("author", "affiliated_with", "institution"): ["0,0"],
        ("author", "writes", "paper"): ["0,0", "0,1", "1,2"],
        ("paper", "cites", "paper"): ["1,0", "2,0"],
        ("paper", "has_topic", "field_of_study"): ["3,0"],
    }
    write_gz(raw / "triplet-type-list.csv.gz", *[",".join(triplet) for triplet in edges])
    for i, (triplet, lines) in enumerate(edges.items()):
        relation = raw / "relations" / "___".join(triplet)
        write_gz(relation / "edge.csv.gz", *lines)
        write_gz(relation / "num-edge-list.csv.gz", str(len(lines)))
        write_gz(relation / "edge_reltype.csv.gz", *[str(i)] * len(lines))
    write_gz(raw / "node-feat" / "paper" / "node-feat.csv.gz", *["1.0,2.0"] * 4)
    write_gz(raw / "node-feat" / "paper" / "node_year.csv.gz", *["2010"] * 4)
    write_gz(raw / "nodetype-has-label.csv.gz", kinds, "False,False,False,True")
    write_gz(raw / "node-label" / "paper" / "node-label.csv.gz", "0", "1", "0", "1")
    split = folder / "split" / "time"
    write_gz(split / "nodetype-has-split.csv.gz", kinds, "False,False,False,True")
    for part, lines in {"train": ["0", "1"], "valid": ["2"], "test": ["3"]}.items():
        write_gz(split / "paper" / f"{part}.csv.gz", *lines)
    (folder / "RELEASE_v2.txt").write_text("")
    graph = load_dataset("ogbn-mag", tmp_path)
    assert len(graph.edge_types) == 7
    cites = {tuple(edge) for edge in graph["paper", "cites", "paper"].edge_index.t().tolist()}
    assert cites == {(1, 0), (0, 1), (2, 0), (0, 2)}
    assert graph["institution"].num_nodes == 1
    assert "x" not in graph["author"]
    assert graph["paper"].y.tolist() == [0, 1, 0, 1]
    split = split_nodes(graph, 0)
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([0, 1], [2], [3])


def test_a_teacher_that_reads_types_serves_a_student_that_reads_features(graph, tmp_path):
    view = limbeck.view(graph, "inductive", 0)
    teacher = limbeck.fit_teacher(view, "rgcn", hidden_channels=8, num_layers=2, max_epochs=3)
    assert teacher.knowledge.logits.shape == (view.num_observed, 3)
    run = limbeck.distill(view, teacher, "glnn", max_epochs=3)
    assert run.scores["teacher"]["num_test_nodes"] == len(view.test_unseen)
    run.save(tmp_path / "bundle")
    student = limbeck.load(tmp_path / "bundle")
    node = int(view.nodes[view.train[0]])
    expected = run.answers.observed[view.train[0]].argmax()
    assert student.predict(nodes=[node])[0] == view.info.class_names[int(expected)]


def test_a_module_of_ones_own_is_called_with_dicts(graph):
    class Own(torch.nn.Module):
        def forward(self, x, edges):
            assert set(x) == set(graph.node_types)
            assert set(edges) == set(graph.edge_types)
            return {kind: rows[:, :3] for kind, rows in x.items()}

    view = make_view(graph, "inductive", 0)
    teacher = limbeck.Teacher(Own()).fitted(view)
    assert torch.equal(teacher.knowledge.logits, view.observed.x[:, :3])
    assert torch.equal(teacher.answers.isolated, view.everything.x[view.test_unseen, :3])


def test_imdb_can_be_viewed(data_root):
    view = make_view(load_graph("imdb", data_root=data_root), "inductive", 0)
    assert view.num_observed == 4278 - 695
    assert view.observed.hetero["actor"].x.shape == (5257, 3066)
    assert view.info.notes["neighbors"] == "two steps through director or actor"
