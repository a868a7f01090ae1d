"""What a folder of tables holds, as one hash: results are kept under it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from limbeck.errors import GraphError, OptionError
from limbeck.graphs.load import check_source, content_of


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize("part", ["", "nested/"])
def test_a_change_in_any_part_of_a_table_is_seen(tmp_path, part):
    # tables may be folders of parts
    write(tmp_path / f"nodes/{part}a.parquet", id=[0, 1], label=[0, 1])
    write(tmp_path / f"nodes/{part}b.parquet", id=[2, 3], label=[0, 1])
    write(tmp_path / "edges.parquet", source=[0], target=[1])
    before = content_of(str(tmp_path))
    assert len(before) == 32
    (tmp_path / "notes.txt").write_text("not of the graph")
    (tmp_path / "runs").mkdir()
    assert content_of(str(tmp_path)) == before == content_of(f"{tmp_path}+sdrf")
    write(tmp_path / f"nodes/{part}b.parquet", id=[2, 3], label=[1, 1])
    after = content_of(str(tmp_path))
    write(tmp_path / f"nodes/{part}c.parquet", id=[4], label=[1])
    assert len({before, after, content_of(str(tmp_path))}) == 3


def test_of_a_plan_all_tables_that_it_names(tmp_path):
    plan = "target: film\nnodes: {film: {table: t/films.parquet, id: id, label: y}}\n"
    plan += "edges: [{table: t/pairs.parquet, from: film, to: film, relation: like}]\n"
    (tmp_path / "hetero.yaml").write_text(plan)
    write(tmp_path / "t/films.parquet", id=[0, 1], y=[0, 1])
    write(tmp_path / "t/pairs.parquet", source=[0], target=[1])
    seen = {content_of(str(tmp_path))}
    write(tmp_path / "t/pairs.parquet", source=[1], target=[0])
    seen.add(content_of(str(tmp_path)))
    (tmp_path / "hetero.yaml").write_text(plan + "scale: false\n")
    assert len({*seen, content_of(str(tmp_path))}) == 3


def test_a_data_set_has_a_name_alone():
    assert content_of("cora") == content_of("cora:geom-gcn/3") == content_of("texas+sdrf/5") == ""


@pytest.mark.parametrize("source", ["cora", "cora:geom-gcn/3", "cora+sdrf/20"])
def test_sources_that_exist(source):
    check_source(source)


def test_sources_that_do_not(tmp_path):
    check_source(str(tmp_path))
    with pytest.raises(OptionError, match="unknown data set 'coraa'"):
        check_source("coraa")
    with pytest.raises(OptionError, match="unknown data set 'coraa'"):
        check_source("coraa+sdrf")
    with pytest.raises(GraphError, match="no such folder"):
        check_source(str(tmp_path / "none"))
    with pytest.raises(GraphError, match="nodes"):
        content_of(str(tmp_path))
