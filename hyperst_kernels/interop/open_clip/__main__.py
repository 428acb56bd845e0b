"""open_clip's training program with hyperbolic models, losses and metrics; its arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from hyperst_kernels.interop.open_clip import create_loss, create_model_and_transforms, evaluate


def main(arguments: Sequence[str]) -> object:
    """Run ``open_clip_train.main`` with the names that it imports replaced."""
    try:
        from open_clip_train import main as program
    except ImportError as error:
        needed = "open_clip's training program does not import: pip install 'open_clip_torch[training]>=2.32'"
        raise ImportError(f"{needed} ({error})") from error
    names: dict[str, Any] = {
        "create_model_and_transforms": create_model_and_transforms,
        "create_loss": create_loss,
        "evaluate": evaluate,
    }
    with patch.multiple(program, **names):
        return program.main(list(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
