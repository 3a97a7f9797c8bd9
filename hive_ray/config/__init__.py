"""Settings of every stage. presets.py has values for them.

Functions take their own section, never the whole `Config`. Lengths of trainings are counted in images, not in steps.
"""

from collections.abc import Mapping
from typing import Any

from hive_ray.config.data import Exporting, Importing, Inspection, Instructions, Pairs, SingleFile, Spending, Writer
from hive_ray.config.editor import (
    FEEDBACK_ARMS,
    SUMMABLE_ARMS,
    Averaging,
    Dpo,
    Editor,
    EditorFile,
    Nft,
    Preview,
    split_arm,
)
from hive_ray.config.evaluation import Evaluation
from hive_ray.config.feedback import Annotation, Candidates, CandidateScoring, Choosing, Rankings
from hive_ray.config.reward import JUDGES, DenoisingError, ErrorCondition, LearningCurve, Reward, Scoring, VisionJudge
from hive_ray.config.section import Precision, Resources, Section
from hive_ray.config.training import Recovery, Training, Watching

__all__ = [
    "FEEDBACK_ARMS",
    "JUDGES",
    "SUMMABLE_ARMS",
    "Annotation",
    "Averaging",
    "CandidateScoring",
    "Candidates",
    "Choosing",
    "Config",
    "DenoisingError",
    "Dpo",
    "Editor",
    "EditorFile",
    "ErrorCondition",
    "Evaluation",
    "Exporting",
    "Importing",
    "Inspection",
    "Instructions",
    "LearningCurve",
    "Nft",
    "Pairs",
    "Precision",
    "Preview",
    "Rankings",
    "Recovery",
    "Resources",
    "Reward",
    "Scoring",
    "Section",
    "SingleFile",
    "Spending",
    "Training",
    "VisionJudge",
    "Watching",
    "Writer",
    "split_arm",
]


class Config(Section):
    """All settings of a run."""

    def changed(self, changes: Mapping[str, Mapping[str, Any]]) -> "Config":
        """A copy with some settings replaced, given by section and name."""
        sections = {name: getattr(self, name).model_copy(update=dict(others)) for name, others in changes.items()}
        return self.model_copy(update=sections)

    writer: Writer = Writer()
    importing: Importing = Importing()
    exporting: Exporting = Exporting()
    instructions: Instructions
    pairs: Pairs
    editor: Editor
    averaging: Averaging = Averaging()
    candidates: Candidates
    candidate_scoring: CandidateScoring = CandidateScoring()
    choosing: Choosing = Choosing()
    rankings: Rankings
    annotation: Annotation = Annotation()
    reward: Reward
    scoring: Scoring
    evaluation: Evaluation
