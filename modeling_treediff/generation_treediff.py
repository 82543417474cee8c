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
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, cached_file

from .canvas_treediff import Canvas
from .generation_config_treediff import SPECIAL_TOKENS, TreeDiffGenerationConfig
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
            them (each 1024 internal nodes) is a look at every internal node on its own; with exact_constraints, they
            are instead one for each 64 sequences looked at.
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
    """What `generate` tells its callback: before the first forward pass, after each, and after an end of text cut some.

    Attributes:
        num_forward_passes: passes so far, as in TreeDiffGenerationOutput.
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
                all open positions of a text alike; the levels follow as for allowed_tokens. What is excluded in every
                text belongs into suppress_tokens instead: bad words of several tokens are planned with that alone.
            callback: called with a GenerationStep before the first forward pass over the drafts and after each.
            kwargs: single settings that override the config's.

        Returns:
            (B * num_return_sequences, T) token ids, or a TreeDiffGenerationOutput.

        Raises:
            ValueError: unknown or impossible settings, num_steps below the tree's depth, ids outside the tree, a
                sequence over the model's max_position_embeddings, or constraints that leave a position no token.

        """
        settings = self._settings(generation_config, kwargs)
        if isinstance(logits_processor, list | tuple) and not isinstance(logits_processor, LogitsProcessorList):
            logits_processor = LogitsProcessorList(logits_processor)
        stages = plan_stages(settings, self.schedule, self.tree)
        canvas = self._canvas(input_ids, attention_mask, settings)
        open_BT = canvas.real & (canvas.node_ids >= self.config.vocab_size)
        blocks = canvas.blocks(settings.block_length, self.config.max_position_embeddings, open_BT)
        constraints = TokenConstraints(self, settings, logits_processor)
        noise = Noise(generator, len(canvas.node_ids))
        record = _Record(canvas, self.tree, streamer, callback, settings.output_history, constraints)
        for columns in blocks:
            constraints.look_at(canvas, columns)
            report = partial(record.report, columns)
            draft, real = canvas.node_ids[:, columns].clone(), canvas.real[:, columns]
            refinement = Refinement(self, draft, real, settings, constraints, noise, report)
            refinement.run(stages)
            cut = self._after_end(canvas, settings)
            record.end_block(columns, refinement.log_probs.masked_fill(cut[:, columns, None], 0))
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
            num_forward_passes=record.num_forward_passes,
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
        source, where = pretrained_model_name_or_path, {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        if cached_file(source, GENERATION_CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **where):
            try:
                self.generation_config = self.generation_config_class.from_pretrained(source, **where)
            except (OSError, TypeError) as error:
                raise ValueError(
                    f"{GENERATION_CONFIG_NAME} of {source} is damaged ({error}). Restore it, or delete it for the "
                    "defaults."
                ) from error

    def _settings(
        self, generation_config: TreeDiffGenerationConfig | None, overrides: dict[str, Any]
    ) -> TreeDiffGenerationConfig:
        own = self.generation_config
        base = own if generation_config is None else generation_config
        # By name: with remote code the same class may exist twice.
        if type(base).__name__ != self.generation_config_class.__name__:
            raise ValueError(
                f"generation_config must be a {self.generation_config_class.__name__}, got {type(base).__name__}; or "
                "give the settings themselves to generate."
            )
        special = {name: getattr(own, name) for name in SPECIAL_TOKENS if getattr(base, name) is None}
        settings = self.generation_config_class(**{**base.to_dict(), **special, **overrides})
        for name in SPECIAL_TOKENS:
            tokens = getattr(settings, name)
            for token in [tokens] if isinstance(tokens, int) else tokens or []:
                if token >= self.config.vocab_size:
                    raise ValueError(f"{name} is {token}: the vocabulary has tokens 0..{self.config.vocab_size - 1}.")
        return settings

    def _canvas(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, settings: TreeDiffGenerationConfig
    ) -> Canvas:
        """Check the given nodes and lay them out, with max_new_tokens roots, once for each text asked for."""
        if input_ids is None:
            input_ids = torch.empty(1, 0, dtype=torch.long, device=self.device)
        for name, given in (("input_ids", input_ids), ("attention_mask", attention_mask)):
            if given is not None and not isinstance(given, torch.Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(given).__name__}.")
        if input_ids.is_floating_point() or input_ids.ndim != 2 or not len(input_ids):
            raise ValueError(
                "input_ids must be whole numbers of shape (batch, length), with a text at least, got "
                f"{input_ids.dtype} of shape {tuple(input_ids.shape)}."
            )
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
        new_tokens = settings.max_new_tokens
        if new_tokens is None:  # fill what is open; where nothing is, continue the text
            is_open = (input_ids >= self.config.vocab_size) & (attention_mask != 0)
            room = self.config.max_position_embeddings - int((attention_mask != 0).sum(dim=1).max())
            new_tokens = 0 if is_open.any() else max(room, 0)
        given, mask = (
            one.to(self.device).repeat_interleave(settings.num_return_sequences, dim=0)
            for one in (input_ids, attention_mask)
        )
        return Canvas.lay_out(given, mask, new_tokens, self.config.mask_token_id)

    def _after_end(self, canvas: Canvas, settings: TreeDiffGenerationConfig) -> torch.Tensor:
        """Put padding, or ends of text if there is none, behind the first new end of text; return where: (B, T)."""
        behind = torch.zeros_like(canvas.real)
        eos = settings.eos_token_id
        if eos is None or not canvas.num_new or not settings.eos_early_stop:
            return behind
        end_ids = torch.tensor(eos, device=behind.device).view(-1)
        ends = torch.isin(canvas.node_ids[:, -canvas.num_new :], end_ids).long()
        behind[:, -canvas.num_new :] = ends.cumsum(dim=1) - ends > 0
        padding = settings.pad_token_id if settings.pad_token_id is not None else int(end_ids[0])
        canvas.node_ids = canvas.node_ids.masked_fill(behind, padding)
        return behind


class _Record:
    """Follows the refinement of all blocks: what is returned, streamed and told to the callback."""

    def __init__(
        self,
        canvas: Canvas,
        tree: Any,  # noqa: ANN401 -- a VocabularyTree
        streamer: BaseStreamer | None,
        callback: Callable[[GenerationStep], None] | None,
        keep_history: bool,
        constraints: TokenConstraints,
    ) -> None:
        self.canvas, self.tree, self.streamer, self.callback = canvas, tree, streamer, callback
        self.constraints, self.passes_before, self.passes_of_block = constraints, 0, 0
        self.last = canvas.result
        self.history = [canvas.result] if keep_history else None
        self.log_probs: torch.Tensor | None = None
        inner = (canvas.result >= tree.vocab_size).any(dim=0).nonzero()
        self.streamed = int(inner[0]) if len(inner) else canvas.result.shape[1]
        if streamer is not None:
            streamer.put(canvas.result[:, : self.streamed].cpu())
        self._tell()

    @property
    def num_forward_passes(self) -> int:
        """All so far, those for the constraints among them."""
        return self.passes_before + self.passes_of_block + self.constraints.num_forward_passes

    def report(self, columns: slice, refinement: Refinement, step_done: bool) -> None:
        """Take over the drafts in these columns of the canvas."""
        self.canvas.node_ids[:, columns] = refinement.node_ids
        if not step_done:
            self.passes_of_block = refinement.num_forward_passes
            self._tell()
        elif self.history is not None:
            self.history.append(self.canvas.restore(self.canvas.node_ids, self.canvas.result))

    def end_block(self, columns: slice, log_probs: torch.Tensor) -> None:
        """Take over what stays of a finished block, whose end of text may have cut off some."""
        canvas = self.canvas
        self.passes_before, self.passes_of_block = self.passes_before + self.passes_of_block, 0
        if self.log_probs is None:
            self.log_probs = log_probs.new_zeros(*canvas.result.shape, self.tree.tree_depth)
        of_canvas = self.log_probs.new_zeros(*canvas.real.shape, self.tree.tree_depth)
        of_canvas[:, columns] = log_probs
        self.log_probs += canvas.restore(of_canvas, torch.zeros_like(self.log_probs))
        result = canvas.restore(canvas.node_ids, canvas.result)
        if not torch.equal(result, self.last):
            self._tell()
        if self.history is not None:
            self.history[-1] = result
        if self.streamer is not None:
            end = columns.stop - canvas.node_ids.shape[1] + result.shape[1]
            self.streamer.put(result[:, self.streamed : end].cpu())
            self.streamed = end

    def _tell(self) -> None:
        result = self.canvas.restore(self.canvas.node_ids, self.canvas.result)
        if self.callback is not None:
            self.callback(GenerationStep(self.num_forward_passes, result.clone(), result != self.last))
        self.last = result
        if self.streamer is not None and hasattr(self.streamer, "put_draft"):
            nodes = result[:, self.streamed :]
            drafts = torch.where(nodes == self.tree.root_id, nodes, self.tree.representative[nodes])
            self.streamer.put_draft(drafts.cpu())
