"""Teachers: one GNN per file, what they know, and those that people bring."""

from limbeck.teachers.base import GNN, TeacherOptions
from limbeck.teachers.cache import TeacherCache
from limbeck.teachers.fit import fit_teacher, teacher_options
from limbeck.teachers.knowledge import Answers, FittedTeacher, Knowledge
from limbeck.teachers.own import LogitsTeacher, Teacher, TeacherSource, knowledge_from

__all__ = [
    "GNN",
    "Answers",
    "FittedTeacher",
    "Knowledge",
    "LogitsTeacher",
    "Teacher",
    "TeacherCache",
    "TeacherOptions",
    "TeacherSource",
    "fit_teacher",
    "knowledge_from",
    "teacher_options",
]
