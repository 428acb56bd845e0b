"""HyperST: spatial gene expression from histology images, on hyperbolic contrastive learning.

What a notebook needs, each name imported when it is first used: ``read_section``, ``RunConfig``, ``fit``, ``load_run``,
``predict_image``, ``evaluate``.

>>> import hyperst
>>> hyperst.RunConfig().data.target
'log1p_cp10k'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hyperst import _old_names

if TYPE_CHECKING:
    from hyperst.config import RunConfig
    from hyperst.data import read_section
    from hyperst.evaluation import evaluate
    from hyperst.predict import predict_image
    from hyperst.run import load_run
    from hyperst.train import fit

__all__ = ["RunConfig", "evaluate", "fit", "load_run", "predict_image", "read_section"]

_HOMES = {
    "RunConfig": "config",
    "evaluate": "evaluation",
    "fit": "train",
    "load_run": "run",
    "predict_image": "predict",
    "read_section": "data",
}


_old_names.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperst' has no attribute {name!r}")
    return getattr(import_module(f"hyperst.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
