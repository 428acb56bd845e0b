"""Folds of a cross-validation: by section, by patient, at random as the paper's, or from files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hyperst.data import Section, SplitError, leave_one_patient_out, leave_one_section_out, random_split

__all__ = ["RULES", "Fold", "make_folds"]

RULES = ("section", "patient", "random5")
_PAIR = re.compile(r"(train|test)_(\w+)\.csv")
_ROLES = ("train", "validation", "test")
_LAYOUTS = (
    "a folder with pairs train_K.csv and test_K.csv, each with a column sample_id (HEST-bench), or one .csv with columns fold, "
    "section and role (train, validation or test)"
)


@dataclass(frozen=True)
class Fold:
    """Names of the sections of a fold; without validation sections, spots of the training sections choose the checkpoint."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_folds(rule: str | Path, sections: Sequence[Section]) -> list[Fold]:
    """Folds over ``sections``.

    Args:
        rule: "section", each left out in turn; "patient", all sections of each patient left out in turn; "random5", five
            independent random splits of the sections into 80 % training, 10 % validation and 10 % test (the paper's, which puts
            sections of one patient on both sides); or a path: a folder with pairs ``train_K.csv`` and ``test_K.csv`` with a
            column ``sample_id``, as in HEST-bench's ``TASK/splits`` (the folder above it will do), or one .csv with columns
            ``fold``, ``section`` and ``role``.

    Raises:
        SplitError: too few sections or patients, patients that are not recorded, or a file that is no such table, names sections
            that are not given, or puts one on two sides.
        FileNotFoundError: no such rule or path.
    """
    if str(rule) == "section":
        splits = leave_one_section_out(sections)
    elif str(rule) == "patient":
        splits = leave_one_patient_out(sections)
    elif str(rule) == "random5":
        splits = random_split(sections, by="section")
    else:
        return _read(Path(rule), [section.name for section in sections])
    if str(rule) == "random5":
        names = [f"random{number}" for number in range(1, len(splits) + 1)]
    else:
        patients = {section.name: str(section.patient) for section in sections}
        names = [split.test[0] if str(rule) == "section" else patients[split.test[0]] for split in splits]
    return [Fold(name, *split) for name, split in zip(names, splits, strict=True)]


def _read(path: Path, known: Sequence[str]) -> list[Fold]:
    if path.is_dir():
        folds = _read_pairs(path / "splits" if (path / "splits").is_dir() else path)
    elif path.is_file():
        folds = _read_table(path)
    else:
        raise FileNotFoundError(f"folds (--folds): {path} does not exist; need {', '.join(RULES)}, or {_LAYOUTS}")
    for fold in folds:
        _check(fold, known, path)
    return folds


def _read_pairs(folder: Path) -> list[Fold]:
    found: dict[str, set[str]] = {}
    for entry in sorted(folder.iterdir()):
        if (match := _PAIR.fullmatch(entry.name)) is not None:
            found.setdefault(match[2], set()).add(match[1])
    if not found:
        raise SplitError(f"{folder} holds no train_K.csv and test_K.csv; need {_LAYOUTS}")
    single = [f"{next(iter(sides))}_{key}.csv" for key, sides in found.items() if len(sides) == 1]
    if single:
        raise SplitError(f"{folder} holds {', '.join(single)} without the other of the pair")
    keys = sorted(found, key=lambda key: (len(key), key))  # 10 after 9
    return [
        Fold(f"fold{key}", _samples(folder / f"train_{key}.csv"), (), _samples(folder / f"test_{key}.csv"))
        for key in keys
    ]


def _samples(path: Path) -> tuple[str, ...]:
    return tuple(_table(path, ("sample_id",))["sample_id"])


def _read_table(path: Path) -> list[Fold]:
    table = _table(path, ("fold", "section", "role"))
    if len(unknown := table[~table["role"].isin(_ROLES)]):
        row = unknown.index[0]
        raise SplitError(f"{path}, row {row + 2}: role is {table['role'][row]!r}; need one of {', '.join(_ROLES)}")
    folds = []
    for name, rows in table.groupby("fold", sort=False):
        sides = (tuple(rows["section"][rows["role"] == role]) for role in _ROLES)
        folds.append(Fold(str(name), *sides))
    return folds


def _table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' errors of parsing are ValueErrors
        raise SplitError(f"{path} is no readable table of folds ({error}); need {_LAYOUTS}") from error
    if missing := [column for column in columns if column not in table]:
        held = ", ".join(map(str, table.columns))
        raise SplitError(f"{path}: no column {', '.join(missing)}, it has {held}; need {_LAYOUTS}")
    return table[list(columns)].apply(lambda column: column.str.strip())


def _check(fold: Fold, known: Sequence[str], path: Path) -> None:
    sides = {"train": fold.train, "validation": fold.validation, "test": fold.test}
    names = [name for side in sides.values() for name in side]
    if unknown := [name for name in names if name not in known]:
        raise SplitError(
            f"{path}, fold {fold.name}: no section given is called {', '.join(unknown)}; the sections are {', '.join(known)} (name "
            "them in a manifest)"
        )
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise SplitError(f"{path}, fold {fold.name}: section {', '.join(doubled)} stands in it more than once")
    if empty := [side for side in ("train", "test") if not sides[side]]:
        raise SplitError(f"{path}, fold {fold.name}: no section to {' and to '.join(empty)}")
