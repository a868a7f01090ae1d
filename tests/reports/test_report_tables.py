"""Tables of a comparison, letter by letter."""

import pytest
from rich.console import Console
from rich.table import Table

from limbeck.evaluation.compare import Comparison, compare
from limbeck.reports.tables import (
    SELECTION_RULE,
    differences_to_terminal,
    standings_to_terminal,
    to_markdown,
    to_terminal,
)


def rows_of(graph: str, by: str = "sage", **accuracies: list[float]) -> list[dict[str, object]]:
    names = {"graph": graph, "setting": "inductive", "teacher": by}
    return [
        {**names, "seed": seed, "method": method, "test_accuracy": accuracy}
        for method, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


@pytest.fixture
def comparison() -> Comparison:
    # glnn differs from the teacher by -0.1 in both seeds, so that its interval is known
    return compare(
        [
            *rows_of("cora", teacher=[0.9, 0.7], glnn=[0.8, 0.6], mlp=[0.5, 0.5]),
            *rows_of("texas", teacher=[0.5], glnn=[0.4], mlp=[0.65]),
        ],
        references=["teacher"],
    )


def shown(table: Table) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_markdown(comparison: Comparison) -> None:
    found = to_markdown(comparison)

    # mlp - teacher on cora is -0.4 and -0.2; two seeds give a bootstrap from end to end
    assert found == (
        """\
## Test accuracy (%)

| graph | setting | seeds | teacher | mlp | glnn |
| --- | --- | --- | --- | --- | --- |
| cora | inductive | 2 | 80.00 ± 10.00 | 50.00 ± 0.00 | **70.00 ± 10.00** |
| texas | inductive | 1 | 50.00 ± 0.00 | **65.00 ± 0.00** | 40.00 ± 0.00 |

*Mean ± population standard deviation over 1 to 2 seeds; bold: best student.*

*Selection: checkpoint of best validation accuracy on the observed graph, ties to the later \
epoch; test nodes scored once.*

### Difference to teacher (percentage points)

| graph | setting | mlp | glnn |
| --- | --- | --- | --- |
| cora | inductive | -30.00 [-40.00, -20.00] (n=2) | -10.00 [-10.00, -10.00] (n=2) |
| texas | inductive | +15.00 (n=1) | -10.00 (n=1) |

*Mean of the differences seed by seed, with its 95 % bootstrap interval (BCa) over n seeds; \
none for one seed.*

### Mean rank and worst gaps

| method | mean rank | cells | mean gap to best | worst gap to best | worst gap to teacher |
| --- | --- | --- | --- | --- | --- |
| mlp | 1.50 | 2 | 10.00 | 20.00 (cora, inductive, sage) | 30.00 (cora, inductive, sage) |
| glnn | 1.50 | 2 | 12.50 | 25.00 (texas, inductive, sage) | 10.00 (cora, inductive, sage) |

*Rank by mean among the students, 1 is best, ties share their mean rank; over the 2 cells that \
have every student and the teacher, on their common seeds. Gaps in percentage points, in the cell \
where they are largest; negative: above the teacher.*
"""
    )


def test_two_teachers_get_a_column() -> None:
    runs = [*rows_of("cora", "sage", mlp=[0.5]), *rows_of("cora", "gat", mlp=[0.5])]

    found = to_markdown(compare(runs))

    assert "| graph | setting | teacher model | seeds | mlp |" in found
    assert "| cora | inductive | gat | 1 | **50.00 ± 0.00** |" in found


def test_unequal_seeds_are_counted_in_each_cell() -> None:
    found = to_markdown(compare(rows_of("cora", glnn=[0.5, 0.5, 0.5], mlp=[0.4])))

    assert "| cora | inductive | 1 to 3 | 40.00 ± 0.00 (n=1) | **50.00 ± 0.00 (n=3)** |" in found


def test_missing_methods_leave_a_dash_and_no_ranks() -> None:
    found = to_markdown(compare([*rows_of("cora", mlp=[0.5]), *rows_of("texas", glnn=[0.5])]))

    assert "| cora | inductive | 1 | **50.00 ± 0.00** | – |" in found
    assert "No cell has every student and the teacher: there are no mean ranks." in found


def test_best_students_that_tie_are_all_bold() -> None:
    found = to_markdown(compare(rows_of("cora", teacher=[0.9], mlp=[0.5], glnn=[0.5])))

    assert "| 90.00 ± 0.00 | **50.00 ± 0.00** | **50.00 ± 0.00** |" in found


def test_many_methods_are_rows() -> None:
    names = [f"m{i}" for i in range(13)]
    here = {name: [0.5, 0.7] for name in names[:-1]}
    comparison = compare(
        [*rows_of("cora", **here, m12=[0.6, 0.8]), *rows_of("texas", **here, m12=[0.2, 0.4])],
        references=["m0"],
    )

    found = to_markdown(comparison)

    assert "| method | cora, inductive | texas, inductive |" in found
    assert "| seeds | 2 | 2 |" in found
    assert "| m11 | 60.00 ± 10.00 | **60.00 ± 10.00** |" in found
    assert "| m12 | **70.00 ± 10.00** | 30.00 ± 10.00 |" in found
    assert "| m12 | +10.00 [" in found


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    assert r"| a\|b | inductive |" in to_markdown(compare(rows_of("a|b", mlp=[0.5])))


def test_every_markdown_row_has_as_many_cells_as_its_header(comparison: Comparison) -> None:
    for block in to_markdown(comparison).split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_terminal_shows_means_seeds_and_rule(comparison: Comparison) -> None:
    found = shown(to_terminal(comparison))

    assert "Test accuracy (%)" in found
    assert "80.00 ± 10.00" in found
    assert "1 to 2 seeds" in found
    assert SELECTION_RULE in " ".join(found.split())


def test_terminal_marks_the_best_student(comparison: Comparison) -> None:
    table = to_terminal(comparison)

    glnn = [str(cell.style) for cell in table.columns[-1].cells]
    assert glnn == ["bold", ""]  # best on cora, not on texas


def test_terminal_shows_differences_and_standings(comparison: Comparison) -> None:
    assert "-30.00 [-40.00, -20.00] (n=2)" in shown(differences_to_terminal(comparison, "teacher"))
    assert "25.00 (texas, inductive, sage)" in shown(standings_to_terminal(comparison))


def test_terminal_takes_brackets_in_a_name_as_they_are() -> None:
    found = shown(to_terminal(compare(rows_of("[red]cora", mlp=[0.5]))))

    assert "[red]cora" in found


def test_terminal_says_why_there_are_no_ranks() -> None:
    runs = [*rows_of("cora", mlp=[0.5]), *rows_of("texas", glnn=[0.5])]

    assert "No cell has every student and the teacher" in shown(
        standings_to_terminal(compare(runs))
    )
