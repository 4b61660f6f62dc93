"""Bulk work on Ray Data: callable classes for `map_batches`, and whole folders of files.

import ray
from mlm_infer.ray import FillTexts

rows = ray.data.read_parquet("reviews")
rows = rows.map_batches(FillTexts, fn_constructor_kwargs={"column": "text"}, batch_format="pyarrow",
                        compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1)
"""

from .actors import FillTexts, ScoreTexts
from .questions import FillQuestion, ScoreQuestion
from .run import BulkReport, run_files

__all__ = ["BulkReport", "FillQuestion", "FillTexts", "ScoreQuestion", "ScoreTexts", "run_files"]
