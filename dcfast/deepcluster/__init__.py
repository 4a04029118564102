"""DeepCluster: learning visual features without labels by clustering them (Caron et al., ECCV 2018).

`DeepCluster` is the estimator; `start` and `resume` give the trainer behind it, and `load_run` opens what a run left.
"""

from dcfast.deepcluster.config import TrainConfig
from dcfast.deepcluster.estimator import DeepCluster
from dcfast.deepcluster.models import VGG16, AlexNet, MicroAlexNet, ResNet, SmallConvNet
from dcfast.deepcluster.run import Run, load_run
from dcfast.deepcluster.trainer import Trainer, resume, start
from dcfast.deepcluster.weights import export, load_weights

__all__ = [
    "VGG16",
    "AlexNet",
    "DeepCluster",
    "MicroAlexNet",
    "ResNet",
    "Run",
    "SmallConvNet",
    "TrainConfig",
    "Trainer",
    "export",
    "load_run",
    "load_weights",
    "resume",
    "start",
]
