"""The composition root: tree, process, backbone, head and generation put together as Hugging Face models.

Shape legend: B sequences, T positions, E hidden size, V tokens, N nodes, D depth of the leaves, K largest fan-out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, can_return_tuple

# Every shipped file is imported here directly: older releases of transformers copy no others.
from .atomic_files import update_folder  # noqa: F401
from .backbone_treediff import TreeDiffBackbone
from .configuration_treediff import TreeDiffConfig
from .diffusion_process import LevelSchedule, corrupt, nelbo_terms
from .generation_treediff import TreeDiffGenerationMixin
from .pretrained_treediff import TreeDiffPreTrainedModel
from .tree_files import find_tree_file  # noqa: F401
from .tree_tables import check_feasible  # noqa: F401
from .vocabulary_tree import VocabularyTree


@dataclass
class TreeDiffOutput(ModelOutput):
    """What `TreeDiffForDiffusionLM.forward` returns.

    Attributes:
        loss: () sum over counted positions of weight x cross-entropy, over their number: nats per token, a Monte
            Carlo estimate of the bound. Only with labels.
        nelbo: (B,) the same sum per sequence, in nats, detached. Only with labels.
        level_losses: (D,) the share of each level in the loss, coarsest first, detached. Only with labels.
        logits: (B, T, K) scores of the children of each position's node, -inf where there is no child; without
            meaning at leaves. None in training mode with labels: nothing needs them there, and they cost memory.
        hidden_states: the backbone's output (B, T, E) in a tuple, if asked for.

    """

    loss: torch.Tensor | None = None
    nelbo: torch.Tensor | None = None
    level_losses: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class NelboEstimate:
    """An upper bound on the negative log-likelihood, estimated by Monte Carlo; nats per token.

    Attributes:
        value: the estimate.
        standard_error: of the value as an estimate for these sequences; infinite for a single corruption. It errs high:
            times are stratified, and the spread between sequences counts too.
        level_losses: (D,) share of each level in the value, coarsest first.
        num_tokens: tokens counted.

    """

    value: float
    standard_error: float
    level_losses: tuple[float, ...]
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(value): an upper bound on the perplexity per token."""
        return float(torch.tensor(self.value, dtype=torch.float64).exp())  # inf, no OverflowError


class TreeDiffModel(TreeDiffPreTrainedModel):
    """Hidden states from node ids. It owns the tree, as persistent integer buffers `table_*`."""

    table_ancestors: torch.Tensor
    table_representative: torch.Tensor
    table_depth: torch.Tensor

    def __init__(self, config: TreeDiffConfig) -> None:
        """Allocate the network and the tree's tables; `TreeDiffForDiffusionLM.from_tree` fills the tables."""
        super().__init__(config)
        shapes = VocabularyTree.table_shapes(
            config.vocab_size, config.tree_depth, config.max_branching, config.num_tree_nodes
        )
        for name, shape in shapes.items():
            self.register_buffer(f"table_{name}", torch.zeros(shape, dtype=torch.long))
        self.embed_nodes = nn.Embedding(config.num_tree_nodes, config.hidden_size)
        self.backbone = TreeDiffBackbone(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the (N, E) node embedding."""
        return self.embed_nodes

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401 -- transformers passes output switches
    ) -> BaseModelOutput:
        """(B, T) node ids in 0..N-1 and (B, T) mask, 0 at padding -> last_hidden_state (B, T, E).

        Ids outside the tree raise ValueError on a CPU; a GPU only asserts, so `corrupt` and `generate` check before.
        """
        try:
            embeddings_BTE = self._embed_paths(input_ids)
        except IndexError as error:
            raise ValueError(
                f"input_ids must lie in 0..{self.config.num_tree_nodes - 1} (nodes of the tree), got "
                f"{int(input_ids.min())}..{int(input_ids.max())}."
            ) from error
        return BaseModelOutput(last_hidden_state=self.backbone(embeddings_BTE, attention_mask))

    def _embed_paths(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, T, E): the sum of the vectors of a node and of all its ancestors.

        Tokens share what their clusters know, so rare ones need not learn it on their own; the root's vector, common
        to all positions, gives attention a constant to build positional patterns from.
        """
        level_D = torch.arange(self.config.tree_depth + 1, device=input_ids.device)
        depth_BT1 = self.table_depth[input_ids][..., None]
        above_BTD = self.table_ancestors[self.table_representative[input_ids]]
        path_BTD = torch.where(level_D < depth_BT1, above_BTD, input_ids[..., None])
        # One lookup for all levels: a lookup each would add up as many gradients of the whole table.
        return (self.embed_nodes(path_BTD) * (level_D <= depth_BT1)[..., None]).sum(dim=2)


class ChildHead(nn.Module):
    """K scores per level of the tree, shared by all parents of that level (arXiv 2604.03537).

    Dense identity: logits[b, i] = W_d h[b, i] + b_d with d the depth of the node at position i.
    """

    def __init__(self, config: TreeDiffConfig) -> None:
        """Make one (E -> K) projection per level."""
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Linear(config.hidden_size, config.max_branching) for _ in range(config.tree_depth)
        )

    def forward(self, hidden_BTE: torch.Tensor, depth_BT: torch.Tensor) -> torch.Tensor:
        """(B, T, E) hidden states and (B, T) depths of the positions' nodes -> (B, T, K)."""
        logits_BTK = self.levels[0](hidden_BTE)
        for depth, level in enumerate(self.levels[1:], start=1):
            logits_BTK = torch.where((depth_BT == depth)[..., None], level(hidden_BTE), logits_BTK)
        return logits_BTK


class TreeDiffForDiffusionLM(TreeDiffGenerationMixin, TreeDiffPreTrainedModel):
    """The diffusion language model: node ids in, child scores, the bound and text out."""

    accepts_loss_kwargs = False  # the loss is a mean over this batch: HF's Trainer is to average over accumulated ones

    def __init__(self, config: TreeDiffConfig) -> None:
        """Allocate the model; its tree is still empty. Use `from_tree` or `from_pretrained`."""
        super().__init__(config)
        self.schedule = LevelSchedule.from_config(config)
        self.model = TreeDiffModel(config)
        self.head = ChildHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,  # noqa: ANN401 -- transformers passes output switches
    ) -> TreeDiffOutput:
        """Score the children of every position's node; with labels, also the bound. Draws no randomness.

        Args:
            input_ids: (B, T) node ids.
            attention_mask: (B, T), 0 at padding.
            labels: (B, T) clean token ids, -100 where not counted; leaves in `input_ids` count as predicted.
            timesteps: (B,) times that `input_ids` were corrupted to; needed with labels.
            output_hidden_states: also return the backbone's output.
            **kwargs: switches of other models, ignored.

        Raises:
            ValueError: labels without timesteps, or ids outside the tree.

        """
        hidden_BTE = self.model(input_ids, attention_mask).last_hidden_state
        tree = self._tree_view()
        logits_BTK = self.head(hidden_BTE, tree.depth[input_ids])
        if self.config.tree_depth > 1:  # the flat tree's root has all children
            parent_row = (input_ids - self.config.vocab_size).clamp(min=0)
            logits_BTK = logits_BTK.masked_fill(tree.children[parent_row] < 0, -torch.inf)
        output = TreeDiffOutput(
            logits=None if self.training and labels is not None else logits_BTK,
            hidden_states=(hidden_BTE,) if output_hidden_states else None,
        )
        if labels is not None:
            if timesteps is None:
                raise ValueError("The loss needs `timesteps` beside `labels`: corrupt(...) returns both.")
            try:
                terms_BTD = nelbo_terms(logits_BTK, input_ids, labels, timesteps, tree, self.schedule)
            except IndexError as error:
                raise ValueError(f"labels must lie in 0..{self.config.vocab_size - 1}, or be -100.") from error
            count = (labels >= 0).sum().clamp(min=1)
            output.loss = terms_BTD.sum() / count
            output.nelbo = terms_BTD.detach().sum(dim=(1, 2))
            output.level_losses = terms_BTD.detach().sum(dim=(0, 1)) / count
        return output

    @torch.no_grad()
    def nelbo(
        self,
        token_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        num_samples: int = 1,
        batch_size: int = 32,
        generator: torch.Generator | None = None,
    ) -> NelboEstimate:
        """Estimate the bound on -log p(tokens), in nats per token.

        Args:
            token_ids: (B, T) clean tokens.
            attention_mask: (B, T), 0 at padding.
            num_samples: corruptions per sequence; the error falls with its square root.
            batch_size: sequences per forward pass.
            generator: source of the randomness, on the model's device.

        Raises:
            ValueError: token ids outside the vocabulary, no token to count, or num_samples below 1.

        """
        tree = self.tree
        mask = torch.ones_like(token_ids) if attention_mask is None else attention_mask
        if num_samples < 1 or not mask.any():
            raise ValueError("There is nothing to measure: num_samples below 1, or a mask without a token.")
        tokens, mask = (part.repeat_interleave(num_samples, dim=0) for part in (token_ids, mask))
        nats, level_nats = [], torch.zeros(self.config.tree_depth, dtype=torch.float64)
        for some_tokens, some_mask in zip(tokens.split(batch_size), mask.split(batch_size), strict=True):
            some_tokens, some_mask = some_tokens.to(self.device), some_mask.to(self.device)
            batch = corrupt(some_tokens, tree, self.schedule, None, generator, some_mask)
            output = self(batch.input_ids, some_mask, batch.labels, batch.timesteps)
            nats.append(output.nelbo.cpu().double())
            level_nats += output.level_losses.cpu().double() * int(some_mask.sum())
        counts = mask.sum(dim=1).cpu().double()
        total = torch.cat(nats)
        value = float(total.sum() / counts.sum())
        # Ratio estimator: the spread of each corruption's nats around the mean rate.
        spread = (total - value * counts).square().sum() * len(total) / max(len(total) - 1, 1)
        error = float(spread.sqrt() / counts.sum()) if len(total) > 1 else float("inf")
        levels = tuple((level_nats / counts.sum()).tolist())
        return NelboEstimate(value, error, levels, int(counts.sum()) // num_samples)
