"""Conformance suites for methods, students and teachers: ours and our users'.

Each function raises ``AssertionError`` with what is wrong, or returns ``None``. Run them on your
own::

    from limbeck.testing import check_method
    check_method(MyMethod(hidden_channels=32))
"""

from limbeck.testing.graphs import small_graph, small_label_graph
from limbeck.testing.methods import check_method
from limbeck.testing.students import check_student
from limbeck.testing.teachers import check_teacher

__all__ = ["check_method", "check_student", "check_teacher", "small_graph", "small_label_graph"]
