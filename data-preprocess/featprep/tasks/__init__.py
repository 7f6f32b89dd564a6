"""What people do with encoders beside maps: `featprep.pipeline` and the tasks there are.

Each task is a file with a class that is called with images. They share what an image may be
(inputs, urls), how a model is named and loaded (models) and how images become batches (rows).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

from featprep.errors import UsageError
from featprep.python_words import python_words
from featprep.settings import nearest
from featprep.tasks import feature_extraction, zero_shot
from featprep.tasks.feature_extraction import FeatureExtraction
from featprep.tasks.models import open_model, open_towers, python_config
from featprep.tasks.zero_shot import ZeroShotClassification

Task = FeatureExtraction | ZeroShotClassification


def _extraction(model: str, settings: dict[str, Any]) -> FeatureExtraction:
    return FeatureExtraction(open_model(feature_extraction.TASK, model, settings))


def _zero_shot(model: str, settings: dict[str, Any]) -> ZeroShotClassification:
    with python_words():
        towers = open_towers(python_config(zero_shot.TASK, model, settings))
        return ZeroShotClassification(*towers)


# task → (what opens it, its model if none is given)
TASKS: dict[str, tuple[Callable[[str, dict[str, Any]], Task], str]] = {
    feature_extraction.TASK: (_extraction, feature_extraction.DEFAULT_MODEL),
    zero_shot.TASK: (_zero_shot, zero_shot.DEFAULT_MODEL),
}


@overload
def pipeline(
    task: Literal["image-feature-extraction"], model: str | None = None, **settings: Any
) -> FeatureExtraction: ...
@overload
def pipeline(
    task: Literal["zero-shot-image-classification"], model: str | None = None, **settings: Any
) -> ZeroShotClassification: ...
@overload
def pipeline(task: str, model: str | None = None, **settings: Any) -> Task: ...
def pipeline(task: str, model: str | None = None, **settings: Any) -> Task:
    """A loaded model that is called with images: featprep.pipeline("image-feature-extraction"), or
    with images and labels: featprep.pipeline("zero-shot-image-classification").

    `model`: FAMILY:ID as `featprep models` lists them, an id of the hub, a folder of transformers'
    or FAMILY:ID=PATH. `settings`: of the command line, those that say what is fed to the network
    and where it runs (models.SETTINGS); resize="native", the checkpoint's own recipe, if not given.
    Raises UsageError for a task or setting that there is not, and WeightsError.
    """
    if task not in TASKS:
        raise UsageError(
            f"featprep.pipeline has no task {task!r}.{nearest(str(task), TASKS)} There is: "
            f"{', '.join(TASKS)}"
        )
    opened, default = TASKS[task]
    return opened(model or default, settings)
