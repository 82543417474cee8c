"""Coarse-to-fine generation: every open position descends the tree, level by level, until it is a token.

Shape legend: B sequences, T positions, P given positions, D depth of the leaves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.streamers import BaseStreamer
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, cached_file

from .configuration_treediff import TreeDiffConfig
from .diffusion_process import Generators, check_nodes, number_blocks
from .drafts_treediff import Block, Constraints, Draft, TokenWeights
from .generation_config_treediff import SPECIAL_TOKENS, TOKENIZER_OUTPUTS, TreeDiffGenerationConfig
from .noise_schedules import LevelSchedule
from .sampling_treediff import Denoiser, Stage
from .vocabulary_tree import HUB_OPTIONS, VocabularyTree


@dataclass
class TreeDiffGenerationOutput(ModelOutput):
    """What `generate` returns with return_dict_in_generate; B counts all texts.

    `log_probs` are those of what was drawn, when it was drawn: not of the text.
    """

    sequences: torch.Tensor | None = None  # (B, T) token ids
    num_forward_passes: int | None = None  # network evaluations (NFE), those for constraints among them
    tokens_per_forward: torch.Tensor | None = None  # (B,) positions written, none behind an end of text, for each pass
    cache_bytes: int | None = None  # of the keys and values kept at the end; None without a cache
    # (B, T, D) of each level's child among its siblings, before temperature and truncation; 0 at levels that were given
    log_probs: torch.Tensor | None = None
    history: tuple[torch.Tensor, ...] | None = None  # with output_history: (B, T) node ids at first and after each step
    depths: tuple[torch.Tensor, ...] | None = None  # with output_history: depths (B, T) of these nodes


@dataclass(frozen=True)
class GenerationStep:
    """What `generate` tells its callback: before the first forward pass, after each, when an end of text cuts some."""

    num_forward_passes: int  # so far
    node_ids: torch.Tensor  # (B, T) the drafts, in the layout of the result
    moved: torch.Tensor  # (B, T) bool: what has changed since the last call


class TreeDiffGenerationMixin:
    """Adds `generate` to a model whose forward maps node ids (B, T) to child logits (B, T, K)."""

    # What the model class brings along.
    config: TreeDiffConfig
    generation_config: TreeDiffGenerationConfig
    device: torch.device
    schedule: LevelSchedule
    tree: VocabularyTree
    child_logits: Callable[..., torch.Tensor]
    model: Any  # a TreeDiffModel
    head: Any  # a TreeHead

    generation_config_class: type[TreeDiffGenerationConfig] = TreeDiffGenerationConfig

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: TreeDiffGenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        generator: Generators = None,
        constraints: Constraints | None = None,
        callback: Callable[[GenerationStep], None] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | TreeDiffGenerationOutput:
        """Fill every position that is not a token yet; tokens that are given never change.

        In every step some positions descend one level of the tree, to a child of their node that is drawn from the
        network's distribution (the reverse process, arXiv 2604.03537). TreeDiffGenerationConfig says which and how.

        Args:
            input_ids: (B, T) node ids: tokens stay; the root (`config.mask_token_id`) becomes any token, an internal
                node one of the tokens below it. Default: one text of open positions.
            attention_mask: (B, T), 0 at padding, on either side; it is left as it is, and texts come out as without it.
            generation_config: the settings; by default the model's own.
            streamer: one of transformers'. It gets what stands before the first open position by `put`, drafts of what
                is behind it by `put_draft` if it has that (as `TextDiffusionStreamer`), with the most frequent token
                below each internal node, and finished blocks by `put`.
            generator: source of the randomness; with a list of one for each returned text, a text does not depend on
                the others of its batch (but in half precision, by rounding, and behind a sliding_window).
            constraints: what the tokens may be, beyond allowed_tokens and suppress_tokens, such as
                `modeling_treediff.constraints.TokenConstraints`: no bad words, logits processors.
            callback: called with a GenerationStep before the first forward pass over the drafts and after each.
            past_key_values: an empty cache of transformers, such as a StaticCache with room for the whole text; by
                default a DynamicCache where the settings have one.
            kwargs: single settings that override the config's; what else a tokenizer returns is ignored.

        Returns:
            (B * num_return_sequences, T) token ids, or a TreeDiffGenerationOutput.

        Raises:
            ValueError: impossible settings, ids outside the tree, a sequence over the model's max_position_embeddings,
                or constraints that leave a position no token.
        """
        settings = self._settings(generation_config, kwargs)
        stages = plan_stages(settings, self.schedule, self.tree)
        draft = self._lay_out(input_ids, attention_mask, settings)
        blocks = plan_blocks(draft, settings, self.config)
        cache = self._cache(past_key_values, settings)
        denoiser = Denoiser(self, draft, settings, constraints or TokenWeights(), generator, cache)
        audience = _Audience(draft, self.tree, streamer, callback, settings.output_history)
        for draft in denoiser.denoise(blocks, stages):
            audience.see(draft)
        if streamer is not None:
            streamer.end()
        sequences, history = draft.result, audience.history
        if not settings.return_dict_in_generate:
            return sequences
        layers: Any = () if cache is None else cache.layers
        return TreeDiffGenerationOutput(
            sequences=sequences,
            num_forward_passes=draft.num_forward_passes,
            tokens_per_forward=denoiser.written.sum(dim=1) / max(1, draft.num_forward_passes),
            cache_bytes=None if cache is None else sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
            log_probs=draft.restore(draft.log_probs, draft.log_probs.new_zeros(*sequences.shape, self.tree.tree_depth)),
            history=None if history is None else tuple(history),
            depths=None if history is None else tuple(self.tree.depth[nodes] for nodes in history),
        )

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """Return forward's arguments; `generate` has its own loop. PEFT looks this method up."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}

    def adjust_generation_fn(self, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any) -> None:
        """Load the saved generation config; `from_pretrained` calls this."""
        if generation_config is not None:
            self.generation_config = self.generation_config_class(**generation_config.to_dict())
            return
        source = args[2]  # behind from_auto_class and from_pipeline
        where = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if source and cached_file(source, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **where):
            try:
                self.generation_config = self.generation_config_class.from_pretrained(source, **where)  # type: ignore[assignment]
            except (OSError, TypeError) as error:
                damaged = f"{GENERATION_CONFIG_NAME} of {source} is damaged ({error})"
                raise ValueError(f"{damaged}. Restore it, or delete it for the defaults.") from error

    def _settings(
        self, generation_config: TreeDiffGenerationConfig | None, overrides: dict[str, Any]
    ) -> TreeDiffGenerationConfig:
        own = self.generation_config
        base = own if generation_config is None else generation_config
        # By name: with remote code the same class may exist twice.
        if type(base).__name__ != (expected := self.generation_config_class.__name__):
            raise ValueError(f"generation_config must be a {expected}, got {type(base).__name__}; or give settings.")
        special = {name: getattr(own, name) for name in SPECIAL_TOKENS if getattr(base, name) is None}
        meant = {name: value for name, value in overrides.items() if name not in TOKENIZER_OUTPUTS}
        settings = self.generation_config_class(**{**base.to_dict(), **special, **meant})
        for name in SPECIAL_TOKENS:
            tokens = getattr(settings, name)
            for token in [tokens] if isinstance(tokens, int) else tokens or []:
                if token >= self.config.vocab_size:
                    raise ValueError(f"{name} is {token}: the vocabulary has tokens 0..{self.config.vocab_size - 1}.")
        return settings

    def _cache(self, given: Cache | None, settings: TreeDiffGenerationConfig) -> Cache | None:
        """Return the cache to use; ValueError if the model or the settings have no use for the one that is given."""
        if settings.approximate_cache and self.config.block_size is not None:
            raise ValueError("The cache of a model that has blocks is exact: leave out approximate_cache.")
        wanted = settings.approximate_cache if self.config.block_size is None else settings.use_cache
        if given is not None and (not wanted or not isinstance(given, Cache) or given.get_seq_length()):
            hint = "with use_cache for a model that has blocks, with approximate_cache for others"
            raise ValueError(f"past_key_values must be an empty cache, {hint}.")
        return DynamicCache() if given is None and wanted else given

    def _lay_out(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, settings: TreeDiffGenerationConfig
    ) -> Draft:
        """Check the given nodes and lay them out, with max_new_tokens roots, once for each text asked for."""
        if input_ids is None:
            input_ids = torch.empty(1, 0, dtype=torch.long, device=self.device)
        check_nodes(input_ids, self.config.num_tree_nodes, attention_mask=attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        new_tokens = settings.max_new_tokens
        if new_tokens is None:  # fill what is open; where nothing is, continue the text
            is_open = (input_ids >= self.config.vocab_size) & (attention_mask != 0)
            known, limit = int((attention_mask != 0).sum(dim=1).max()), self.config.max_position_embeddings
            if known >= limit and not is_open.any():
                raise ValueError(f"{known} given positions leave no room in the model's {limit}: shorten the text.")
            new_tokens = 0 if is_open.any() else limit - known
        given, mask = (
            one.to(self.device).repeat_interleave(settings.num_return_sequences, dim=0)
            for one in (input_ids, attention_mask)
        )
        return Draft.lay_out(given, mask, new_tokens, self.tree)


class _Audience:
    """The observers of a draft: streamer, callback and history; they only read."""

    def __init__(
        self,
        draft: Draft,
        tree: VocabularyTree,
        streamer: BaseStreamer | None,
        callback: Callable[[GenerationStep], None] | None,
        keep_history: bool,
    ) -> None:
        self.tree, self.streamer, self.callback = tree, streamer, callback
        self.last = draft.given
        self.history = [draft.given] if keep_history else None
        self.steps = self.blocks = 0
        inner = (draft.given >= tree.vocab_size).any(dim=0).nonzero()
        self.streamed = int(inner[0]) if len(inner) else draft.given.shape[1]
        if streamer is not None:
            streamer.put(draft.given[:, : self.streamed].cpu())
        self._tell(draft)

    def see(self, draft: Draft) -> None:
        """Take note of a forward pass or remasking, of the end of a step, or of the end of a block."""
        if draft.num_blocks > self.blocks:
            self.blocks = draft.num_blocks
            self._end_block(draft)
        elif draft.num_steps > self.steps:
            self.steps = draft.num_steps
            if self.history is not None:
                self.history.append(draft.result)
        else:
            self._tell(draft)

    def _end_block(self, draft: Draft) -> None:
        result = draft.result
        if not torch.equal(result, self.last):  # an end of text has cut off some
            self._tell(draft)
        if self.history is not None:
            self.history[-1] = result
        if self.streamer is not None:
            inner = (result >= self.tree.vocab_size).any(dim=0).nonzero()
            end = int(inner[0]) if len(inner) else result.shape[1]
            if end > self.streamed:
                self.streamer.put(result[:, self.streamed : end].cpu())
            self.streamed = end

    def _tell(self, draft: Draft) -> None:
        result = draft.result
        if self.callback is not None:
            self.callback(GenerationStep(draft.num_forward_passes, result.clone(), result != self.last))
        self.last = result
        if self.streamer is not None and hasattr(self.streamer, "put_draft"):
            nodes = result[:, self.streamed :]
            shown = torch.where(nodes == self.tree.root_id, nodes, self.tree.representative[nodes])
            self.streamer.put_draft(shown.cpu())


def plan_blocks(draft: Draft, settings: TreeDiffGenerationConfig, config: TreeDiffConfig) -> list[Block]:
    """Return what is filled one after the other: blocks that the model has, or of block_length; else all is one.

    In the n-th place is the n-th block of each text that has an open position; what is given goes with the first of
    block_length. A text that outgrows max_position_embeddings is seen through a window.
    """
    length, limit, own = draft.node_ids.shape[1], config.max_position_embeddings, config.block_size
    size, window = settings.block_length, settings.sliding_window or (limit if own is None else None)
    if own is not None and size is not None:
        raise ValueError(f"The model writes in blocks of its own, of {own} positions: leave out block_length.")
    if length > limit and (window is None or (own or size) is None):
        option = "block_length" if own is None else "sliding_window"
        hint = f", or write it in blocks ({option})" if draft.num_new else ""
        raise ValueError(f"{length} positions are more than the model's {limit}: make the text shorter{hint}.")
    if window is not None and window > limit:
        raise ValueError(f"sliding_window={window} is more than the {limit} positions of the model: make it smaller.")
    if window is not None and (length > limit or own is None) and (own or size or 0) + (length > limit) > window:
        said = f"block_length={size} leaves" if own is None else f"A block of the model, {own} positions, leaves"
        raise ValueError(f"{said} no room in {window} positions: choose a smaller block or a larger sliding_window.")
    column_T = torch.arange(length, device=draft.real.device)
    if own is not None:
        number_BT = number_blocks(draft.node_ids, draft.real, None, own)
    else:
        number_BT = ((column_T + draft.num_new - length).clamp(min=0) // (size or length)).expand_as(draft.real)
    is_open_BT = draft.real & (draft.node_ids >= config.vocab_size)
    opens_BN = torch.zeros_like(number_BT).scatter_add(1, number_BT, is_open_BT.long()) > 0
    turn_BT = torch.where(opens_BN, opens_BN.cumsum(dim=1), 0).gather(1, number_BT) * draft.real
    blocks, start = [], 0
    for turn in range(1, int(turn_BT.max()) + 1):
        here_BT = turn_BT == turn
        end = int(here_BT.any(dim=0).nonzero()[-1]) + 1  # of texts with fewer open blocks: they are finished
        start = start if window is None or end - start <= limit else end - window
        visible_BT = draft.real & (column_T >= start)
        if own is not None and start:  # a block that begins before the window is not seen in part
            visible_BT &= number_BT > torch.where(draft.real, number_BT, -1)[:, start - 1 : start]
        if (here_BT & is_open_BT & ~visible_BT).any():
            said = f"An open position lies over {window or limit} positions before its block's end, out of sight"
            raise ValueError(f"{said}: fill it first, widen sliding_window, or write prompts of one length together.")
        changing_BT = here_BT if own is not None else here_BT & is_open_BT
        num_final = int(changing_BT.any(dim=0).nonzero()[0]) - start
        blocks.append(Block(slice(start, end), here_BT & visible_BT, visible_BT, num_final))
    return blocks


def plan_stages(settings: TreeDiffGenerationConfig, schedule: LevelSchedule, tree: VocabularyTree) -> list[Stage]:
    """Divide the steps over the stages; ValueError for fewer steps than levels, or corrections without a pass."""
    depths = list(range(1, schedule.depth + 1)) if len(schedule.boundaries) - 1 == schedule.depth else [schedule.depth]
    climbs = [min(settings.remasking_levels, depth) for depth in depths]
    share, extra = divmod(settings.remasking_steps, len(depths))
    corrections = [(share + (index < extra)) // climb for index, climb in enumerate(climbs)]
    spent = sum(rounds * climb for rounds, climb in zip(corrections, climbs, strict=True))
    if settings.remasking_steps and not spent:
        levels = settings.remasking_levels
        raise ValueError(f"One correction that climbs {levels} levels takes as many remasking_steps: give more.")
    steps = _divide_steps(settings, schedule, tree, len(depths), spent)
    times = schedule.reverse_times(steps)
    ends = [sum(steps[: index + 1]) for index in range(len(steps))]
    parts = [times[end - count : end + 1] for end, count in zip(ends, steps, strict=True)]
    return [Stage(*stage) for stage in zip(depths, parts, corrections, climbs, strict=True)]


def _divide_steps(
    settings: TreeDiffGenerationConfig, schedule: LevelSchedule, tree: VocabularyTree, num_stages: int, corrections: int
) -> list[int]:
    """Return the steps of each stage, without `corrections` passes that are spent otherwise."""
    given, left = settings.steps_per_level, settings.num_steps - corrections
    if given is not None and num_stages != schedule.depth:
        raise ValueError("steps_per_level needs a schedule that goes through the levels one by one: leave it out.")
    if isinstance(given, list | tuple):
        if len(given) != schedule.depth:
            raise ValueError(f"steps_per_level has {len(given)} numbers, the tree {schedule.depth} levels.")
        return list(given)
    if settings.unmasking == "first_hitting":  # which goes by hitting times alone
        left = max(left, schedule.depth)
    if left < schedule.depth:
        spent = f" of which remasking spends {corrections}" if corrections else ""
        raise ValueError(f"num_steps={settings.num_steps}{spent} is too small: {schedule.depth} levels need one each.")
    if given is None:
        return schedule.split_steps(left)
    # "auto": one step for each level, the others in proportion to its bits, by largest remainders.
    bits = [math.log2(below / above) for above, below in pairwise(tree.depth.bincount().tolist())]
    exact = [(left - len(bits)) * level_bits / (sum(bits) or 1) for level_bits in bits]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(bits)), key=lambda index: counts[index] - exact[index])
    for place in range(left - len(bits) - sum(counts)):
        counts[by_remainder[place % len(bits)]] += 1
    return [1 + count for count in counts]
