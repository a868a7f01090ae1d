"""Whom to believe: the student where it is sure, the teacher's stored answer where it is not."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from limbeck.errors import OptionError
from limbeck.runtime.arrays import checked_array
from limbeck.runtime.bundle import STORE, Bundle, CascadeEntry
from limbeck.runtime.kernel import softmax

TEACHER_LOGITS = "teacher_logits"


class Choice(NamedTuple):
    """What a cascade answers for ``B`` nodes.

    Args:
        answer: Number of the class, int64 ``[B]``.
        confidence: Calibrated probability of that class, by whoever answers, float32 ``[B]``.
        deferred: Whether the student is less sure than the threshold asks, bool ``[B]``.
        by_teacher: Whether the answer is the teacher's, bool ``[B]``: that of a deferred node
            whose teacher's answer the bundle holds. A deferred node without has the student's.
    """

    answer: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    deferred: npt.NDArray[np.bool_]
    by_teacher: npt.NDArray[np.bool_]


class Decisions(NamedTuple):
    """A :class:`Choice` with classes by name.

    Args:
        prediction: Name of the class, ``[B]``.
        confidence: As in :class:`Choice`.
        deferred: Likewise.
        by_teacher: Likewise.
    """

    prediction: npt.NDArray[np.str_]
    confidence: npt.NDArray[np.float32]
    deferred: npt.NDArray[np.bool_]
    by_teacher: npt.NDArray[np.bool_]


class Cascade:
    """Defers what a student is not sure enough of.

    Args:
        entry: The threshold, fitted on validation nodes.
        teacher_logits: The teacher's calibrated logits for the known nodes, float16 ``[N, C]``,
            NaN where it has no answer; ``None`` for none at all.
    """

    def __init__(
        self, entry: CascadeEntry, teacher_logits: npt.NDArray[np.float16] | None = None
    ) -> None:
        self.entry = entry
        self._teacher_logits = teacher_logits

    @classmethod
    def open(cls, bundle: Bundle) -> Cascade | None:
        """The cascade of an opened bundle; ``None`` if it was distilled without one.

        Raises:
            BundleError: The teacher's logits are of another type or shape than the bundle says.
        """
        manifest = bundle.manifest
        if manifest.cascade is None:
            return None
        if not bundle.has_array(TEACHER_LOGITS):
            return cls(manifest.cascade)
        shape = (manifest.graph.counts["nodes"], len(manifest.classes))
        arrays: dict[str, npt.NDArray[Any]] = {TEACHER_LOGITS: bundle.array(TEACHER_LOGITS)}
        where = str(bundle.path / STORE)
        return cls(
            manifest.cascade, checked_array(arrays, where, TEACHER_LOGITS, np.float16, shape)
        )

    def decide(
        self,
        probabilities: npt.NDArray[np.float32],
        rows: npt.NDArray[np.int64] | None = None,
        threshold: float | None = None,
    ) -> Choice:
        """Choose who answers for each node.

        Args:
            probabilities: The student's calibrated probabilities, float32 ``[B, C]``.
            rows: Rows of these nodes in the store, int64 ``[B]``, −1 where the teacher's answer no
                longer holds; ``None`` for new nodes.
            threshold: Confidence below which a node is deferred; that of the bundle by default.

        Raises:
            OptionError: ``threshold`` is below 0, or not a number.
        """
        if threshold is None:
            threshold = self.entry.threshold
        elif not threshold >= 0:
            raise OptionError(f"threshold is {threshold}: it must be a number of at least 0.")
        answer = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(len(answer)), answer]
        # in float32, as the confidences are that the threshold was found among
        deferred = confidence < np.float32(threshold)
        by_teacher = np.zeros(len(answer), dtype=np.bool_)
        if rows is not None and self._teacher_logits is not None:
            asked = np.flatnonzero(deferred & (rows >= 0))
            theirs = self._teacher_logits[rows[asked]].astype(np.float32)
            knows = np.isfinite(theirs).all(axis=1)
            asked, theirs = asked[knows], softmax(theirs[knows], 1.0)
            by_teacher[asked] = True
            answer[asked] = theirs.argmax(axis=1)
            confidence[asked] = theirs.max(axis=1, initial=0.0)
        return Choice(answer, confidence, deferred, by_teacher)
