"""What people do with encoders beside maps: `featprep.pipeline` and the tasks there are.

Each task is a file with a class that is called with images. They share what an image may be
(inputs, urls), how a model is named and loaded (models) and how images become batches (rows).
"""

from __future__ import annotations

from typing import Any

from featprep.errors import UsageError
from featprep.settings import nearest
from featprep.tasks import feature_extraction
from featprep.tasks.feature_extraction import FeatureExtraction
from featprep.tasks.models import open_model

# task → (its class, its model if none is given)
TASKS = {
    feature_extraction.TASK: (FeatureExtraction, feature_extraction.DEFAULT_MODEL),
}


def pipeline(task: str, model: str | None = None, **settings: Any) -> FeatureExtraction:
    """A loaded model that is called with images: featprep.pipeline("image-feature-extraction").

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
    task_class, default = TASKS[task]
    return task_class(open_model(task, model or default, settings))
