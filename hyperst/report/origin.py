"""Whether the predictions on a page come from the run that the page is about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hyperst.report.spots import SpotMap
from hyperst.report.summary import RunSummary

__all__ = ["origin_warnings", "require_origin"]

_BEST = "checkpoints/best.ckpt"


def require_origin(spots: SpotMap, path: Path, summary: RunSummary) -> None:
    """Raise ValueError where a prediction was made with other weights than those of the run."""
    if _is_other(spots, summary):
        run, epoch = spots.facts.get("run", "another run"), spots.facts.get("best_epoch", "?")
        raise ValueError(
            f"{path} was not predicted by the run in {summary.folder} as it is now: it names the run {run}, epoch {epoch}, whose "
            f"checkpoint has the SHA-256 {str(spots.checkpoint)[:12]}..., this one {summary.checksums[_BEST][:12]}... (networks: "
            f"{spots.facts.get('networks', 1)} and {summary.networks}); give predictions of this run, or predict again"
        )


def origin_warnings(maps: Iterable[SpotMap], summary: RunSummary) -> list[str]:
    """What a reader has to know of maps whose weights are others than the run's, or are not recorded."""
    said = []
    for each in maps:
        if each.checkpoint is None:
            said.append(
                f"{each.title}: the file, of an earlier version, does not say which weights made it; it may be another run's."
            )
        elif _is_other(each, summary):
            said.append(
                f"{each.title}: made with other weights than the run has now; evaluate the section again with `hyperst evaluate`."
            )
    return said


def _is_other(spots: SpotMap, summary: RunSummary) -> bool:
    if None in (spots.checkpoint, own := summary.checksums.get(_BEST)):
        return False
    return spots.checkpoint != own or int(spots.facts.get("networks", 1)) != summary.networks
