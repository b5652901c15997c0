"""Annotation: entropies and patches of whole corpora, computed once and stored beside the text (design section 7).

Sources become shards (`plan`), shards get their entropies (`scoring`) and are written (`work`), and a job (`job`) sees
to it that all of them are, once, by this process or by a Ray cluster (`cluster`).
"""

from bltkit.annotate.annotation_job import annotate
from bltkit.annotate.annotation_plan import SHARD_BYTES, AnnotationPlan, ShardPlan, ShardReader, plan_shards
from bltkit.annotate.batched_scoring import entropies_of
from bltkit.annotate.summary import Annotation

__all__ = [
    "SHARD_BYTES",
    "Annotation",
    "AnnotationPlan",
    "ShardPlan",
    "ShardReader",
    "annotate",
    "entropies_of",
    "plan_shards",
]
