"""Tree-structured diffusion language models for the Hugging Face ecosystem.

The files of this folder are the model and travel with every checkpoint; its subfolders do not.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from .configuration_treediff import TreeDiffConfig
from .diffusion_process import CorruptedBatch, corrupt
from .generation_config_treediff import TreeDiffGenerationConfig
from .generation_treediff import GenerationStep, TreeDiffGenerationOutput
from .likelihood_treediff import NelboEstimate, NelboStep
from .modeling_treediff import TreeDiffForDiffusionLM, TreeDiffForMaskedLM, TreeDiffModel, TreeDiffOutput
from .schedule_base import LevelSchedule
from .version import __version__
from .vocabulary_tree import VocabularyTree

__all__ = [
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


AutoConfig.register(TreeDiffConfig.model_type, TreeDiffConfig, exist_ok=True)
for auto_class in (AutoModel, AutoModelForCausalLM):
    auto_class.register(TreeDiffConfig, TreeDiffForDiffusionLM, exist_ok=True)
AutoModelForMaskedLM.register(TreeDiffConfig, TreeDiffForMaskedLM, exist_ok=True)
# So that save_pretrained writes the code beside the weights.
TreeDiffConfig.register_for_auto_class()
TreeDiffForDiffusionLM.register_for_auto_class("AutoModel")
TreeDiffForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
