"""Which operators a test of the kernels concerns, by its id: what a failure stops the timing of."""

from __future__ import annotations

from benchmarks.cases import CASES

HINGES, PAIRS = "entailment_loss", "pairwise_distance"
LOSS, HIERARCHY = "contrastive_loss", "hierarchical_contrastive_loss"
ROW_WISE = tuple(dict.fromkeys(case.operator for case in CASES.values()))
# in the order they are timed: the quick ones first
OPERATORS = (*ROW_WISE, HINGES, PAIRS, LOSS, HIERARCHY)

# the first part that an id holds decides; tests of single functions, of settings and of the process concern all
_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hinges_match_one_relation", (HINGES, "exterior_angle", "half_aperture")),
    ("hinges", (HINGES,)),
    ("autocast_and_broadcasting", ("distance",)),
    ("log_map0", ("log_map0",)),
    ("log_map", ("log_map",)),
    ("exp_map_along_a_ray", ("exp_map",)),
    ("slope_of_the_time", ("lift",)),
    ("slope_of_distance0", ("distance0",)),
    ("test_distance_matrix.py", (PAIRS,)),
    ("test_smoke.py::test_pairs", (PAIRS,)),
    ("test_smoke.py::test_terms_of_a_hierarchy", (HIERARCHY,)),
    ("test_hierarchy.py", (HIERARCHY,)),
    ("test_fused_arithmetic.py", (LOSS, HIERARCHY)),
    ("test_matrix_far_out", (PAIRS,)),
    ("test_extreme_losses.py", (LOSS, HIERARCHY)),
    ("test_contrastive_kernel.py", (LOSS, HIERARCHY)),
    ("test_centred_tiles.py", (LOSS, HIERARCHY)),
    ("test_split_features.py", (LOSS, HIERARCHY)),
    ("test_graphs.py", (LOSS, HIERARCHY)),
    ("test_rectangle.py", (LOSS, HIERARCHY)),
    ("test_smoke.py::test_loss", (LOSS, HIERARCHY)),
    ("test_public_losses", (LOSS, HIERARCHY)),
    # what is left of a file of rows is of all its operators
    ("test_maps.py", ("exp_map0", "log_map0", "exp_map", "log_map", "lift")),
    ("test_transport.py", ("parallel_transport",)),
    ("test_poincare.py", ("lorentz_to_poincare", "poincare_to_lorentz")),
    ("test_distance.py", ("inner", "distance", "distance0")),
    ("test_entailment.py", ("half_aperture", "exterior_angle", HINGES)),
    ("test_pair_loss", (PAIRS,)),  # and the tests of its targets
    ("test_pair_blocks.py", (PAIRS,)),
    ("test_pair_rectangle.py", (PAIRS,)),
    ("test_retrieval.py", (PAIRS,)),
    # public functions by name
    ("[entailment_loss-", (HINGES,)),
    ("[pairwise_distance-", (PAIRS,)),
    ("[similarity-", (PAIRS,)),
    ("[contrastive_loss-", (LOSS, HIERARCHY)),
    ("test_tune.py", ()),
)


def concerned(test: str) -> frozenset[str]:
    """Operators of a test, or of a module that cannot be collected. The first parameter of a test of rows is its case."""
    named, _, parameters = test.partition("[")
    cases = {**CASES, **{case.operator: case for case in CASES.values()}}
    fitting = [name for name in cases if parameters.startswith((f"{name}-", f"{name}]"))]
    if fitting and "test_scalars.py" not in named:
        return frozenset([cases[max(fitting, key=len)].operator])
    return frozenset(next((operators for part, operators in _PARTS if part in test), OPERATORS))
