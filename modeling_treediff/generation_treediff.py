"""Coarse-to-fine generation: every open position descends the tree, level by level, until it is a token.

Shape legend: B sequences, T positions, K largest fan-out, D depth of the leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import ModelOutput

from .diffusion_process import uniform
from .schedule_base import LevelSchedule
from .tree_files import HUB_OPTIONS

Choose = Callable[[torch.Tensor], torch.Tensor]


class TreeDiffGenerationConfig(GenerationConfig):
    """How `generate` samples; saved with the model. Unknown names are refused.

    Attributes:
        max_new_tokens: open positions appended to `input_ids`, or the length of an unconditional text. By default as
            many as the model's max_position_embeddings leave room for; none where `input_ids` holds open positions.
        num_steps: steps from time 1 to 0; with the sequential schedule at most so many forward passes, split evenly
            over the levels of the tree, so at least its depth.
        do_sample: draw children from their distribution; False takes the most likely child.
        temperature: divides the logits; below 1 the likely children are preferred. Must be > 0.
        top_k: draw only among the k likeliest children at each level; None for all.
        top_p: draw only among the likeliest children that together have this probability; None for all.
        num_return_sequences: texts per prompt.
        output_history: also return the node ids after each step.
        return_dict_in_generate: return a TreeDiffGenerationOutput instead of the ids.
        bos_token_id, eos_token_id, pad_token_id: special tokens, taken over from the model's config.

    Raises:
        ValueError: an unknown name or an impossible value.

    """

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 -- what a JSON file holds
        """Take the known names from kwargs, their defaults for the rest, and validate."""
        # Not the parent's __init__: most of its options mean nothing here and would be silently ignored.
        self.max_new_tokens: int | None = kwargs.pop("max_new_tokens", None)
        self.num_steps: int = kwargs.pop("num_steps", 64)
        self.do_sample: bool = kwargs.pop("do_sample", True)
        self.temperature: float = kwargs.pop("temperature", 1.0)
        self.top_k: int | None = kwargs.pop("top_k", None)
        self.top_p: float | None = kwargs.pop("top_p", None)
        self.num_return_sequences: int = kwargs.pop("num_return_sequences", 1)
        self.output_history: bool = kwargs.pop("output_history", False)
        self.return_dict_in_generate: bool = kwargs.pop("return_dict_in_generate", False)
        self.bos_token_id: int | None = kwargs.pop("bos_token_id", None)
        self.eos_token_id: int | None = kwargs.pop("eos_token_id", None)
        self.pad_token_id: int | None = kwargs.pop("pad_token_id", None)
        self.transformers_version: str | None = kwargs.pop("transformers_version", None)
        for internal in ("_from_model_config", "_commit_hash", "_original_object_hash"):
            kwargs.pop(internal, None)
        self._from_model_config = False
        if kwargs:
            known = sorted(name for name in self.__dict__ if not name.startswith("_"))
            raise ValueError(f"Unknown generation option {', '.join(sorted(kwargs))}; known: {', '.join(known)}.")
        self.validate()

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Raise ValueError for values that no model could use."""
        for name in ("max_new_tokens", "num_steps", "num_return_sequences", "top_k"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
        if self.temperature is None or self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}; do_sample=False is greedy.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}.")

    def to_diff_dict(self) -> dict[str, Any]:
        """Return everything: the base class would drop values that equal *its* defaults, which are not ours."""
        return self.to_dict()

    @classmethod
    def from_model_config(cls, model_config: Any) -> "TreeDiffGenerationConfig":  # noqa: ANN401
        """Take the special tokens over from a TreeDiffConfig."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return cls(**{name: getattr(model_config, name, None) for name in names})


@dataclass
class TreeDiffGenerationOutput(ModelOutput):
    """What `generate` returns with return_dict_in_generate.

    Attributes:
        sequences: (B, T) token ids.
        num_forward_passes: network evaluations spent (NFE).
        history: with output_history, one (B, T) tensor of node ids before the first step and after each.

    """

    sequences: torch.Tensor | None = None
    num_forward_passes: int | None = None
    history: tuple[torch.Tensor, ...] | None = None


class TreeDiffGenerationMixin:
    """Adds `generate` to a model whose forward maps node ids (B, T) to child logits (B, T, K)."""

    # What the model class brings along.
    config: Any
    generation_config: Any
    device: torch.device
    schedule: LevelSchedule
    tree: Any
    __call__: Callable[..., Any]

    generation_config_class: Any = TreeDiffGenerationConfig

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: TreeDiffGenerationConfig | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,  # noqa: ANN401 -- fields of the generation config
    ) -> torch.Tensor | TreeDiffGenerationOutput:
        """Fill every position that is not a token yet; tokens that are given never change.

        Every step of the reverse process (arXiv 2604.03537) draws for each position the depth it is to reach, exactly
        as the schedule has it, and the positions descend there, one level per forward pass. A step in which none moves
        costs no pass; with the binomial and poisson schedules some move several levels in one step.

        Args:
            input_ids: (B, T) node ids: tokens stay; the root (`config.mask_token_id`) becomes any token, an internal
                node one of the tokens below it. Default: one text of open positions.
            attention_mask: (B, T), 0 at padding, which is left as it is.
            generation_config: the settings; by default the model's own.
            generator: source of the randomness; the same state gives the same text.
            kwargs: single settings that override the config's.

        Returns:
            (B * num_return_sequences, T) token ids, or a TreeDiffGenerationOutput.

        Raises:
            ValueError: unknown or impossible settings, num_steps below the tree's depth, ids outside the tree, or a
                sequence over the model's max_position_embeddings.

        """
        settings = self._settings(generation_config, kwargs)
        node_ids, attention_mask = self._open_positions(input_ids, attention_mask, settings)
        padding = torch.zeros_like(node_ids, dtype=torch.bool) if attention_mask is None else attention_mask == 0
        times = self.schedule.reverse_times(settings.num_steps).tolist()
        choose = _child_chooser(settings, generator)
        history, passes = [node_ids], 0
        for start, end in zip(times[:-1], times[1:], strict=True):
            target = self._target_depths(node_ids, self.schedule.reverse_step(start, end), generator)
            while bool((moves := (self.tree.depth[node_ids] < target) & ~padding).any()):
                logits = self(input_ids=node_ids, attention_mask=attention_mask).logits
                node_ids = self._descend(node_ids, logits, moves, choose)
                passes += 1
            if settings.output_history:
                history.append(node_ids)
        if not settings.return_dict_in_generate:
            return node_ids
        return TreeDiffGenerationOutput(
            sequences=node_ids,
            num_forward_passes=passes,
            history=tuple(history) if settings.output_history else None,
        )

    def _target_depths(
        self, node_ids: torch.Tensor, step: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Draw the depth (B, T) that each position is to reach, from the (D+1, D+1) probabilities of the step."""
        reached_before = step.cumsum(dim=1)[:, :-1].to(node_ids.device, _sampling_dtype(node_ids.device))
        draw_BT1 = uniform(node_ids.shape, generator, node_ids.device)[..., None]
        return (draw_BT1 >= reached_before[self.tree.depth[node_ids]]).sum(dim=-1)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return forward's arguments; there is no cache. PEFT looks this method up."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str,
        *args: Any,  # noqa: ANN401 -- further arguments vary between versions of transformers
        trust_remote_code: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Load the saved generation config; `from_pretrained` calls this."""
        if generation_config is not None:
            self.generation_config = self.generation_config_class(**generation_config.to_dict())
            return
        try:
            self.generation_config = self.generation_config_class.from_pretrained(
                pretrained_model_name_or_path, **{name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
            )
        except OSError:
            pass  # a checkpoint without one keeps the defaults

    def _settings(
        self, generation_config: TreeDiffGenerationConfig | None, overrides: dict[str, Any]
    ) -> TreeDiffGenerationConfig:
        base = generation_config if generation_config is not None else self.generation_config
        return self.generation_config_class(**{**base.to_dict(), **overrides})

    def _open_positions(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, settings: TreeDiffGenerationConfig
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return start (B, T) and its attention mask: the given nodes and max_new_tokens roots, per text asked for."""
        limit = self.config.max_position_embeddings
        new_tokens = settings.max_new_tokens
        if input_ids is None:
            input_ids = torch.empty(1, 0, dtype=torch.long, device=self.device)
            new_tokens = new_tokens or limit
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape (batch, length), got {tuple(input_ids.shape)}.")
        nodes = self.config.num_tree_nodes
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < nodes:
            raise ValueError(
                f"input_ids must lie in 0..{nodes - 1} (nodes of the tree), got {int(input_ids.min())}.."
                f"{int(input_ids.max())}."
            )
        if new_tokens is None and bool((self.tree.depth[input_ids] == self.config.tree_depth).all()):
            new_tokens = max(limit - input_ids.shape[1], 0)  # nothing to fill in: a prompt to continue
        shape = (len(input_ids), new_tokens or 0)
        roots = torch.full(shape, self.config.mask_token_id, dtype=torch.long, device=input_ids.device)
        node_ids = torch.cat([input_ids, roots], dim=1)
        if node_ids.shape[1] > limit:
            raise ValueError(
                f"{node_ids.shape[1]} positions are more than the model's {limit} (max_position_embeddings)."
            )
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(
                    f"attention_mask {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)} differ."
                )
            attention_mask = torch.cat([attention_mask, torch.ones_like(roots)], dim=1)
            attention_mask = attention_mask.repeat_interleave(settings.num_return_sequences, dim=0).to(self.device)
        return node_ids.repeat_interleave(settings.num_return_sequences, dim=0).to(self.device), attention_mask

    def _descend(
        self, node_ids: torch.Tensor, logits: torch.Tensor, moves: torch.Tensor, choose: Choose
    ) -> torch.Tensor:
        """Move the positions in the (B, T) mask `moves` to the child that `choose` picks from their logits (n, K)."""
        node_ids = node_ids.clone()
        if moves.any():
            rows = self.tree.children[node_ids[moves] - self.config.vocab_size]
            node_ids[moves] = rows.gather(1, choose(logits[moves])[:, None])[:, 0]
        return node_ids


def _child_chooser(settings: TreeDiffGenerationConfig, generator: torch.Generator | None) -> Choose:
    """Return the function from child logits (n, K) to chosen slots (n,)."""
    if not settings.do_sample:
        return lambda logits: logits.argmax(dim=-1)
    warpers = LogitsProcessorList()
    if settings.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k is not None:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p is not None:
        warpers.append(TopPLogitsWarper(float(settings.top_p)))

    def sample(logits: torch.Tensor) -> torch.Tensor:
        # Low-precision sampling silently lowers the entropy of the text: never below fp32.
        scores = warpers(None, logits.float())  # type: ignore[arg-type]  # these do not look at the text
        cumulative = scores.softmax(dim=-1).to(_sampling_dtype(logits.device)).cumsum(dim=-1)
        total = cumulative[:, -1:]
        threshold = uniform(cumulative.shape[:1], generator, logits.device)[:, None] * total
        threshold = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))  # whatever the rounding
        # The first slot whose cumulative probability exceeds the threshold; one of probability 0 never does.
        return torch.searchsorted(cumulative, threshold, right=True)[:, 0]

    return sample


def _sampling_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which that device lacks
