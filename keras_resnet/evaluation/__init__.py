"""The papers' evaluation protocols for classifiers."""

from keras_resnet.evaluation.protocols import (
    PARTS,
    EvaluationError,
    Result,
    class_names,
    default_crop,
    evaluate,
    gives_logits,
    load_data,
    load_model,
    model_file,
    run_settings,
)

__all__ = [
    "EvaluationError",
    "PARTS",
    "Result",
    "class_names",
    "default_crop",
    "evaluate",
    "gives_logits",
    "load_data",
    "load_model",
    "model_file",
    "run_settings",
]
