"""Tree-structured diffusion language models for the Hugging Face ecosystem.

The files of this folder are the model and travel with every checkpoint; its subfolders do not.

Importing the package lets transformers' Auto classes load our models without `trust_remote_code`. The command
`treediff` alone does without, and imports names when they are first used, so that `treediff --help` answers at once.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration_treediff import TreeDiffConfig
    from .diffusion_process import CorruptedBatch, corrupt
    from .drafts_treediff import Constraints
    from .generation_config_treediff import TreeDiffGenerationConfig
    from .generation_treediff import GenerationStep, TreeDiffGenerationOutput
    from .likelihood_treediff import NelboEstimate, NelboStep
    from .modeling_treediff import TreeDiffForDiffusionLM, TreeDiffForMaskedLM, TreeDiffModel, TreeDiffOutput
    from .noise_schedules import LevelSchedule
    from .vocabulary_tree import VocabularyTree

__version__ = "0.2.0"

HOMES = {
    "configuration_treediff": ("TreeDiffConfig",),
    "diffusion_process": ("CorruptedBatch", "corrupt"),
    "drafts_treediff": ("Constraints",),
    "generation_config_treediff": ("TreeDiffGenerationConfig",),
    "generation_treediff": ("GenerationStep", "TreeDiffGenerationOutput"),
    "likelihood_treediff": ("NelboEstimate", "NelboStep"),
    "modeling_treediff": ("TreeDiffForDiffusionLM", "TreeDiffForMaskedLM", "TreeDiffModel", "TreeDiffOutput"),
    "noise_schedules": ("LevelSchedule",),
    "vocabulary_tree": ("VocabularyTree",),
}

__all__ = [
    "Constraints",
    "CorruptedBatch",
    "GenerationStep",
    "LevelSchedule",
    "NelboEstimate",
    "NelboStep",
    "TreeDiffConfig",
    "TreeDiffForDiffusionLM",
    "TreeDiffForMaskedLM",
    "TreeDiffGenerationConfig",
    "TreeDiffGenerationOutput",
    "TreeDiffModel",
    "TreeDiffOutput",
    "VocabularyTree",
    "__version__",
    "corrupt",
]


def import_on_use(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """Return a package's `__getattr__` (PEP 562) that imports a name when it is first used.

    Args:
        package: the full name of the package.
        homes: for each of its modules the names that are found there.

    """

    def look_up(name: str) -> object:
        for home, names in homes.items():
            if name in names:
                value = getattr(import_module(f".{home}", package), name)
                setattr(sys.modules[package], name, value)
                return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return look_up


__getattr__ = import_on_use(__name__, HOMES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def register() -> None:
    """Let transformers' Auto classes load our models as their own."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    from .configuration_treediff import TreeDiffConfig
    from .modeling_treediff import TreeDiffForDiffusionLM, TreeDiffForMaskedLM

    AutoConfig.register(TreeDiffConfig.model_type, TreeDiffConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForCausalLM):
        auto_class.register(TreeDiffConfig, TreeDiffForDiffusionLM, exist_ok=True)
    AutoModelForMaskedLM.register(TreeDiffConfig, TreeDiffForMaskedLM, exist_ok=True)


if Path(sys.argv[0]).name not in ("treediff", "treediff.exe"):
    register()
