"""Tables in, tables out: a bundle's answers for as many rows as a folder of Parquet files holds."""

from limbeck.scoring.rows import Columns
from limbeck.scoring.run import Progress, ScoreReport, score_tables

__all__ = ["Columns", "Progress", "ScoreReport", "score_tables"]
