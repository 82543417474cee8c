"""Coarse-to-fine generation: every open position descends the tree, level by level, until it is a token.

Shape legend: B sequences, T positions, D depth of the leaves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput

from .canvas_treediff import Canvas
from .generation_config_treediff import TreeDiffGenerationConfig
from .refinement_treediff import Refinement
from .schedule_base import LevelSchedule
from .token_constraints_treediff import TokenConstraints
from .tree_files import HUB_OPTIONS
from .unmasking_treediff import Noise, plan_stages


@dataclass
class TreeDiffGenerationOutput(ModelOutput):
    """What `generate` returns with return_dict_in_generate. B counts all texts returned.

    Attributes:
        sequences: (B, T) token ids.
        num_forward_passes: network evaluations spent (NFE). With constraints on tokens, of trees deeper than 1, one of
            them (each 1024 internal nodes) is a look at every internal node on its own.
        log_probs: (B, T, D) log-probability, among its siblings, of each level's child when it was drawn, given the
            constraints, before temperature and truncation; 0 at levels that were given. The probability of what was
            drawn when it was drawn, not of the text.
        history: with output_history, one (B, T) tensor of node ids before the first step and after each.
        depths: with output_history, the depths (B, T) of these nodes.

    """

    sequences: torch.Tensor | None = None
    num_forward_passes: int | None = None
    log_probs: torch.Tensor | None = None
    history: tuple[torch.Tensor, ...] | None = None
    depths: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class GenerationStep:
    """What `generate` tells its callback, before the first forward pass and after each.

    Attributes:
        num_forward_passes: passes so far.
        node_ids: (B, T) the drafts, in the layout of the result.
        moved: (B, T) bool: what has changed since the last call.

    """

    num_forward_passes: int
    node_ids: torch.Tensor
    moved: torch.Tensor


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
        streamer: BaseStreamer | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        logits_processor: LogitsProcessorList | None = None,
        callback: Callable[[GenerationStep], None] | None = None,
        **kwargs: Any,  # noqa: ANN401 -- fields of the generation config
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
            generator: source of the randomness; the same state gives the same text on a CPU. A list of one for each
                returned text gives each the same text alone and in a batch.
            logits_processor: may add to the scores of tokens, or exclude them by -inf. Called in each pass with the
                nodes of the drafts and scores (B, V) of 0, it says by how much the tokens' log-probabilities change, at
                all open positions of a text alike; the levels follow exactly.
            callback: called with a GenerationStep before the first forward pass and after each.
            kwargs: single settings that override the config's.

        Returns:
            (B * num_return_sequences, T) token ids, or a TreeDiffGenerationOutput.

        Raises:
            ValueError: unknown or impossible settings, num_steps below the tree's depth, ids outside the tree, a
                sequence over the model's max_position_embeddings, or constraints that leave a position no token.

        """
        settings = self._settings(generation_config, kwargs)
        stages = plan_stages(settings, self.schedule, self.tree)
        canvas = self._canvas(input_ids, attention_mask, settings)
        open_BT = canvas.real & (canvas.node_ids >= self.config.vocab_size)
        blocks = canvas.blocks(settings.block_length, self.config.max_position_embeddings, open_BT)
        constraints = TokenConstraints(self, settings, logits_processor)
        noise = Noise(generator, len(canvas.node_ids))
        record = _Record(canvas, self.tree, streamer, callback, settings.output_history)
        for columns in blocks:
            report = partial(record.report, columns)
            draft, real = canvas.node_ids[:, columns].clone(), canvas.real[:, columns]
            refinement = Refinement(self, draft, real, settings, constraints, noise, report)
            refinement.run(stages)
            if settings.eos_early_stop:
                canvas.node_ids = self._after_end(canvas.node_ids, canvas.num_new, settings)
            record.end_block(columns, refinement)
            if not (canvas.node_ids[canvas.real] >= self.config.vocab_size).any():
                break
        sequences = canvas.restore(canvas.node_ids, canvas.result)
        if streamer is not None:
            streamer.end()
        if not settings.return_dict_in_generate:
            return sequences
        history = record.history
        return TreeDiffGenerationOutput(
            sequences=sequences,
            num_forward_passes=record.num_forward_passes + constraints.num_forward_passes,
            log_probs=record.log_probs,
            history=None if history is None else tuple(history),
            depths=None if history is None else tuple(self.tree.depth[nodes] for nodes in history),
        )

    def decode_draft(
        self, node_ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, level: int | None = None
    ) -> str | list[str]:
        """Write nodes (T,) or (B, T) as text: ` _` for the root, an internal node as its most frequent <token>.

        With `level`, nodes deeper than that are shown by their ancestors there: what a text says at that level.

        Raises:
            ValueError: a level that the tree does not have.

        """
        if node_ids.ndim == 2:
            return [str(self.decode_draft(row, tokenizer, level)) for row in node_ids]
        if level is not None:
            if not 0 <= level <= self.tree.tree_depth:
                raise ValueError(f"The tree has levels 0 (root) to {self.tree.tree_depth} (tokens), not {level}.")
            node_ids = self.tree.coarsen(node_ids.to(self.device), level)
        shown, tokens = [], []
        # Neighbouring tokens are decoded together: a character may need several.
        for node, representative in zip(node_ids.tolist(), self.tree.representative[node_ids].tolist(), strict=True):
            if node < self.config.vocab_size:
                tokens.append(node)
                continue
            shown.append(str(tokenizer.decode(tokens)))
            tokens = []
            text = str(tokenizer.decode([representative]))
            coarse = f"{' ' if text.startswith(' ') else ''}<{text.strip()}>"
            shown.append(" _" if node == self.config.mask_token_id else coarse)
        return "".join([*shown, str(tokenizer.decode(tokens))]).strip()

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

    def _canvas(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, settings: TreeDiffGenerationConfig
    ) -> Canvas:
        """Check the given nodes and lay them out, with max_new_tokens roots, once for each text asked for."""
        new_tokens = settings.max_new_tokens or 0
        if input_ids is None:
            input_ids = torch.empty(1, 0, dtype=torch.long, device=self.device)
            new_tokens = new_tokens or self.config.max_position_embeddings
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape (batch, length), got {tuple(input_ids.shape)}.")
        nodes = self.config.num_tree_nodes
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < nodes:
            raise ValueError(
                f"input_ids must lie in 0..{nodes - 1} (nodes of the tree), got {int(input_ids.min())}.."
                f"{int(input_ids.max())}."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)} differ."
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        given, mask = (
            one.to(self.device).repeat_interleave(settings.num_return_sequences, dim=0)
            for one in (input_ids, attention_mask)
        )
        return Canvas.lay_out(given, mask, new_tokens, self.config.mask_token_id)

    def _after_end(self, node_ids: torch.Tensor, num_new: int, settings: TreeDiffGenerationConfig) -> torch.Tensor:
        """Put padding, or ends of text if there is none, behind the first end of text in the last num_new columns."""
        eos = settings.eos_token_id
        if eos is None or not num_new:
            return node_ids
        given, new = node_ids[:, :-num_new], node_ids[:, -num_new:]
        end_ids = torch.tensor(eos, device=node_ids.device).view(-1)
        ends = torch.isin(new, end_ids).long()
        padding = settings.pad_token_id if settings.pad_token_id is not None else int(end_ids[0])
        return torch.cat([given, new.masked_fill(ends.cumsum(dim=1) - ends > 0, padding)], dim=1)


class _Record:
    """Follows the refinement of all blocks: what is returned, streamed and told to the callback."""

    def __init__(
        self,
        canvas: Canvas,
        tree: Any,  # noqa: ANN401 -- a VocabularyTree
        streamer: BaseStreamer | None,
        callback: Callable[[GenerationStep], None] | None,
        keep_history: bool,
    ) -> None:
        self.canvas, self.tree, self.streamer, self.callback = canvas, tree, streamer, callback
        self.num_forward_passes = 0
        self.last = canvas.result
        self.history = [canvas.result] if keep_history else None
        self.log_probs: torch.Tensor | None = None
        inner = (canvas.result >= tree.vocab_size).any(dim=0).nonzero()
        self.streamed = int(inner[0]) if len(inner) else canvas.result.shape[1]
        if streamer is not None:
            streamer.put(canvas.result[:, : self.streamed].cpu())
        self._tell()

    def report(self, columns: slice, refinement: Refinement, step_done: bool) -> None:
        """Take over the drafts in these columns of the canvas."""
        self.canvas.node_ids[:, columns] = refinement.node_ids
        if not step_done:
            self._tell(refinement.num_forward_passes)
        elif self.history is not None:
            self.history.append(self.canvas.restore(self.canvas.node_ids, self.canvas.result))

    def end_block(self, columns: slice, refinement: Refinement) -> None:
        """Take over what stays of a finished block, whose end of text may have cut off some."""
        self.num_forward_passes += refinement.num_forward_passes
        canvas = self.canvas
        if self.log_probs is None:
            self.log_probs = refinement.log_probs.new_zeros(*canvas.result.shape, self.tree.tree_depth)
        of_canvas = self.log_probs.new_zeros(*canvas.real.shape, self.tree.tree_depth)
        of_canvas[:, columns] = refinement.log_probs
        self.log_probs += canvas.restore(of_canvas, torch.zeros_like(self.log_probs))
        result = canvas.restore(canvas.node_ids, canvas.result)
        if self.history is not None:
            self.history[-1] = result
        if self.streamer is not None:
            end = columns.stop - canvas.node_ids.shape[1] + result.shape[1]
            self.streamer.put(result[:, self.streamed : end].cpu())
            self.streamed = end

    def _tell(self, passes_of_block: int = 0) -> None:
        result = self.canvas.restore(self.canvas.node_ids, self.canvas.result)
        if self.callback is not None:
            self.callback(GenerationStep(self.num_forward_passes + passes_of_block, result, result != self.last))
        self.last = result
        if self.streamer is not None and hasattr(self.streamer, "put_draft"):
            nodes = result[:, self.streamed :]
            drafts = torch.where(nodes == self.tree.root_id, nodes, self.tree.representative[nodes])
            self.streamer.put_draft(drafts.cpu())
