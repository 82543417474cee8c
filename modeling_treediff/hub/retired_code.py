"""The code files of checkpoints of version 0.1.0 that later checkpoints no longer have."""

from collections.abc import Collection

MARK = "pretrained_treediff.py"  # the others have names that a file of somebody else's might have, too
NAMES = frozenset(
    f"{name}.py"
    for name in (
        "atomic_files bad_words_treediff canvas_treediff card_metadata_treediff card_values_treediff "
        "child_choice_treediff heads_treediff hub_upload lean_operations_treediff level_schedules lost_levels "
        "mask_token masked_lm_treediff model_card_treediff model_records_treediff pretrained_treediff "
        "refinement_treediff schedule_base token_constraints_treediff tree_files tree_sketch_treediff tree_tables "
        "unmasking_treediff version"
    ).split()
)


def retired_code(names: Collection[str]) -> set[str]:
    """Return those files of a folder that only the code of version 0.1.0 needs; none where that never was."""
    return set(NAMES.intersection(names)) if MARK in names else set()
