"""Generate text with a saved model and watch it become concrete, level by level.

D is the depth of the model's tree: an open position descends D levels to a token. An open position is shown as `_`, an
internal node of the tree by its most frequent token in angle brackets.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_treediff.generation_config_treediff import UNMASKING, TreeDiffGenerationConfig

from .fields import block_size_option, check_exclusive, help_of, operand, option, trust_option

EXAMPLES = """
  treediff generate my_model                                            # unconditional
  treediff generate my_model --prompt "The state of the Union is"       # continue a text
  treediff generate my_model --infill "We must ____ our ________."      # fill each run of _ (one token each)
  treediff generate my_model --infill "The _ spoke." --like people      # the gap: a word of the cluster of "people"
  treediff generate my_model --bad-words war "the enemy"                # without these words
  treediff generate my_model --temperature 1.1 0.8                      # one for each level, coarsest first
  treediff generate my_model --watch --animation text.gif               # live, and as a file that plays it
"""


def setting(name: str, **metadata: Any) -> Any:
    """Return the field of a setting of `generate`: not given, it is as the model's own generation config has it."""
    return option(None, help_of(TreeDiffGenerationConfig, name), **metadata)


@dataclass(frozen=True)
class Text:
    """The model, and its prompt or text to fill in."""

    model: str = operand("folder or Hub repository of a trained model")
    prompt: str | None = option(None, "text to continue", is_text=True)
    infill: str | None = option(None, "text with gaps: every _ is one token to fill", is_text=True)
    like: list[str] | None = option(
        None,
        "the first gap of --infill becomes a token of the first word's cluster in the tree, the second one "
        "of the second word's",
        metavar="WORD",
        is_text=True,
    )
    bad_words: list[str] | None = option(None, "words that the new text must not contain", metavar="WORD", is_text=True)
    max_new_tokens: int = option(48, "length of new text, in tokens")
    block_size: int | None = block_size_option()
    seed: int = option(0, "seed of the random draws")
    trust_remote_code: bool = trust_option()

    def __post_init__(self) -> None:
        """Raise ValueError for a prompt beside an infilling, and for clusters without gaps."""
        check_exclusive(self, "prompt", "infill")
        if self.like is not None and self.infill is None:
            raise ValueError("--like says of which clusters the gaps of --infill are: give a text with gaps.")


@dataclass(frozen=True)
class Sampling:
    """Settings of `generate` by the same names."""

    _argument_group_name = "sampling (defaults are the model's own)"

    num_steps: int | None = setting("num_steps")
    steps_per_level: list[str] | None = setting("steps_per_level", metavar="STEPS|auto")
    temperature: list[float] | None = setting("temperature")
    top_k: int | None = setting("top_k")
    top_p: float | None = setting("top_p")
    unmasking: str | None = setting("unmasking", choices=UNMASKING)
    threshold: float | None = setting("threshold")
    entropy_bound: float | None = setting("entropy_bound")
    remasking_steps: int | None = setting("remasking_steps")
    remasking_rate: float | None = setting("remasking_rate")
    stability_threshold: int | None = setting("stability_threshold")
    confidence_threshold: float | None = setting("confidence_threshold")
    guidance_scale: float | None = setting("guidance_scale")
    block_length: int | None = setting("block_length")
    sliding_window: int | None = setting("sliding_window")
    approximate_cache: bool = option(False, help_of(TreeDiffGenerationConfig, "approximate_cache"))

    def __post_init__(self) -> None:
        """Raise ValueError for steps that are not numbers."""
        self.settings()

    def settings(self) -> dict[str, Any]:
        """Return what is given, as arguments of `generate`."""
        given = {name: value for name, value in vars(self).items() if value is not None and value is not False}
        if self.temperature is not None and len(self.temperature) == 1:
            given["temperature"] = self.temperature[0]
        if self.steps_per_level == ["auto"]:
            given["steps_per_level"] = "auto"
        elif self.steps_per_level is not None:
            if not all(word.isdecimal() for word in self.steps_per_level):
                raise ValueError(f"--steps-per-level takes numbers or auto, got {' '.join(self.steps_per_level)}.")
            given["steps_per_level"] = [int(word) for word in self.steps_per_level]
        return given


@dataclass(frozen=True)
class Shown:
    """How the text is shown."""

    _argument_group_name = "view"

    snapshots: int = option(5, "intermediate texts to show")
    watch: bool = option(False, "show every pass, live (extra `demo`)")
    animation: Path | None = option(None, "write a .gif or .html that plays it (extra `demo`)")


OPTIONS = (Text, Sampling, Shown)
