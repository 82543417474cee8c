"""Settings of `generate`, and their validation."""

import math
from typing import Any

import torch
from transformers import GenerationConfig

from .configuration_treediff import LARGEST_COUNT, check_types

ORDERED = ("confidence", "margin", "entropy")
UNMASKING = ("random", "first_hitting", *ORDERED)
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
OVERFLOW = ("overflow_to_sample_mapping", "num_truncated_tokens", "overflowing_tokens")
TOKENIZER_OUTPUTS = ("token_type_ids", "special_tokens_mask", "offset_mapping", "length", *OVERFLOW)  # no model reads
MOVED = ("bad_words_ids", "exact_constraints", "logits_processor")  # settings until version 0.2, saved as null
CHOICES = {"unmasking": UNMASKING, "sampling_dtype": ("float32", "float64"), "steps_per_level": ("auto",)}
ABOVE_0 = math.ulp(0.0)
COUNTS = "num_steps steps_per_level remasking_levels top_k max_new_tokens num_return_sequences"
COUNTS += " block_length sliding_window stability_threshold"
# Settings, the least and the largest that each of their numbers may be, and how that is said.
RANGES = (
    (COUNTS, 1, LARGEST_COUNT, "be a positive whole number up to 2^20"),
    ("temperature guidance_scale", ABOVE_0, math.inf, "be positive"),
    ("top_p remasking_fraction confidence_threshold", ABOVE_0, 1, "lie in (0, 1]"),
    ("remasking_steps remasking_rate threshold entropy_bound", 0, math.inf, "not be negative"),
    (" ".join(("allowed_tokens", "suppress_tokens", *SPECIAL_TOKENS)), 0, math.inf, "not be negative"),
)


class TreeDiffGenerationConfig(GenerationConfig):
    """Settings of `generate`, saved with the model; ValueError for unknown names and impossible values.

    A level is one step down the tree: D of them lead from the root to a token. K is the largest fan-out.

    Attributes:
        max_new_tokens: open positions appended to `input_ids`. By default as many as max_position_embeddings leaves
            room for, or none where `input_ids` holds open positions.
        block_length: append the new tokens in blocks of this length, each finished before the next begins and seeing
            the last max_position_embeddings (semi-autoregressive, arXiv 2503.09573). By default all at once.
        sliding_window: where a text outgrows max_position_embeddings, a model that has blocks goes on with the blocks
            among the last sliding_window positions, and so on, a batch at once; by default it refuses.
        num_steps: steps of the text, or of each block, at least D. A step is one forward pass; with unmasking="random"
            none where nothing moves, and one for each level that some position descends. A new model in discrete time
            (D3PM) has its own T here.
        steps_per_level: for the sequential schedule, in place of num_steps: D numbers of steps, coarsest level first;
            "auto" divides num_steps in proportion to the bits that a level decides, log2 of its mean fan-out.
        unmasking: which positions descend in a step. "random": as in the reverse process of the model's schedule, those
            of one step each on its own: what the bound describes as steps grow, or in discrete time in T steps.
            "first_hitting": one position and level per pass, in the order of that process (arXiv 2409.02908), exact
            in continuous time whatever num_steps. The others take equal shares in num_steps passes, surest first: by
            the probability of the child drawn ("confidence", arXiv 2202.04200), by its lead over the second
            ("margin"), or by the lowest "entropy".
        threshold: with confidence, margin or entropy, all positions that are this sure descend as well (probability or
            lead at least this, entropy at most this many nats); num_steps is then the largest number of steps.
        entropy_bound: with entropy, as many of the surest positions descend as well as have together, the least sure of
            them left out, at most this many nats (arXiv 2505.24857); num_steps is then the largest number of steps.
        remasking_steps: steps of num_steps spent on corrections (on top of steps_per_level and first_hitting): when a
            level is filled, the new positions whose descent was least probable are drawn anew (arXiv 2503.00307).
        remasking_fraction: share of the positions that climb in the first correction of a level, then linearly less.
        remasking_levels: levels that they climb; each needs a pass to come down.
        remasking_rate: with unmasking="random", each step goes on for this many steps more, and noise takes as much
            back: tokens once written may change; exact as steps grow (ReMDM, arXiv 2503.00307).
        stability_threshold: corrections of a level end when this many, one after the other, have changed nothing.
        confidence_threshold: and when all that was drawn is at least this probable.
        guidance_scale: above 1, given tokens count for more: logits are those without them, plus this many times what
            they add (classifier-free guidance, arXiv 2410.18514). Each pass then costs a second one.
        do_sample: draw children from their distribution; False takes the most likely child.
        temperature: divides the logits, > 0; D numbers set it for each level, coarsest first.
        top_k: draw only among the k likeliest children at each level; by default all.
        top_p: draw only among the likeliest children that together have this probability; 1 or None: all.
        allowed_tokens: token ids; no others are generated.
        suppress_tokens: token ids that are not generated.
        sampling_dtype: precision of the draw, "float64" or "float32".
        eos_early_stop: replace what follows the first end of text among the new tokens by padding.
        num_return_sequences: texts per prompt.
        use_cache: keep keys and values of finished blocks, in a model that has blocks: the same text, sooner.
        approximate_cache: in a model without blocks, keep keys and values of what stands before the first open position
            as the block's first pass has them: sooner, but not the same text (arXiv 2505.22618).
        output_history: also return the node ids after each step.
        return_dict_in_generate: return a TreeDiffGenerationOutput instead of the ids.
        bos_token_id, eos_token_id, pad_token_id: special tokens; where None, those of the model's own settings.
    """

    max_new_tokens: int | None = None
    block_length: int | None = None
    sliding_window: int | None = None
    num_steps: int = 64
    steps_per_level: str | list[int] | None = None
    unmasking: str = "random"
    threshold: float | None = None
    entropy_bound: float | None = None
    remasking_steps: int = 0
    remasking_fraction: float = 0.1
    remasking_levels: int = 1
    remasking_rate: float = 0.0
    stability_threshold: int | None = None
    confidence_threshold: float | None = None
    guidance_scale: float | None = None
    do_sample: bool = True
    temperature: float | list[float] = 1.0
    top_k: int | None = None
    top_p: float | None = None
    allowed_tokens: list[int] | None = None
    suppress_tokens: list[int] | None = None
    sampling_dtype: str = "float64"
    eos_early_stop: bool = True
    num_return_sequences: int = 1
    use_cache: bool = True
    approximate_cache: bool = False
    output_history: bool = False
    return_dict_in_generate: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    transformers_version: str | None = None

    def __init__(self, **kwargs: Any) -> None:
        """Take the known names from kwargs, their defaults for the rest, and validate."""
        # Not the parent's __init__: most of its options mean nothing here and would be silently ignored.
        for name in SETTINGS:
            setattr(self, name, kwargs.pop(name, getattr(self.__class__, name)))
        for internal in ("_from_model_config", "_commit_hash", "_original_object_hash"):
            kwargs.pop(internal, None)
        self._from_model_config = False
        if moved := sorted(name for name in MOVED if kwargs.pop(name, None)):
            hint = "give generate constraints=modeling_treediff.constraints.TokenConstraints(...) with it"
            raise ValueError(f"{', '.join(moved)} is no setting: {hint} (pip install modeling-treediff).")
        if kwargs:
            known = ", ".join(sorted(SETTINGS))
            raise ValueError(f"Unknown generation option {', '.join(sorted(kwargs))}; known: {known}.")
        self.validate()

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Raise ValueError for values that no model could use, and for attributes that would be lost in saving."""
        fields = {*SETTINGS, *vars(GenerationConfig())}  # theirs mean nothing here, nor are saved
        if strange := sorted(name for name in vars(self).keys() - fields if name[0] != "_"):
            raise ValueError(f"Unknown generation option {', '.join(strange)}: it cannot be saved with the model.")
        check_types(self, TreeDiffGenerationConfig)
        for name, known in CHOICES.items():
            if isinstance(value := getattr(self, name), str) and value not in known:
                raise ValueError(f"Unknown {name} {value!r}; known: {', '.join(known)}.")
        for names, least, most, rule in RANGES:
            for name in names.split():
                numbers = value if isinstance(value := getattr(self, name), list | tuple) else [value]
                if not all(least <= one <= most for one in numbers if isinstance(one, int | float)):
                    raise ValueError(f"{name} must {rule}, got {repr(value)[:40]}.")
        if self.eos_token_id in ([], ()):
            raise ValueError("eos_token_id is an empty list: leave it out.")
        if self.threshold is not None and self.unmasking not in ORDERED:
            raise ValueError(f"threshold needs unmasking by {', '.join(ORDERED)}, not {self.unmasking!r}.")
        if self.remasking_rate and self.unmasking != "random":
            hint = "leave it out (0), or take remasking_steps"
            raise ValueError(f"remasking_rate needs unmasking='random', not {self.unmasking!r}: {hint}.")
        if self.stability_threshold is not None and not self.remasking_steps:
            raise ValueError("stability_threshold ends corrections: give remasking_steps, too.")
        if self.confidence_threshold is not None and self.stability_threshold is None:
            raise ValueError("confidence_threshold needs a stability_threshold: give both.")
        if self.entropy_bound is not None and self.unmasking != "entropy":
            raise ValueError(f"entropy_bound needs unmasking by entropy, not {self.unmasking!r}.")

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Return the numbers to draw with on a device; single precision where it has no other."""
        return torch.float32 if device.type == "mps" else getattr(torch, self.sampling_dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return our settings alone: transformers sets fields of its own, which mean nothing here."""
        return {name: value for name, value in super().to_dict().items() if name in SETTINGS}

    to_diff_dict = to_dict  # the parent's drops values that equal *its* defaults, which are not ours

    @classmethod
    def from_model_config(cls, model_config: Any) -> "TreeDiffGenerationConfig":
        """Take the special tokens, and the T steps of discrete time, over from a TreeDiffConfig."""
        steps = getattr(model_config, "num_timesteps", None) or cls.num_steps
        return cls(num_steps=steps, **{name: getattr(model_config, name, None) for name in SPECIAL_TOKENS})


# Read of the class: from Python 3.14 on its instances have no annotations.
SETTINGS = tuple(TreeDiffGenerationConfig.__annotations__)
