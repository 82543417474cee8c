"""Small models, and what they should answer."""

import functools
import itertools

import torch

from modeling_treediff import TreeDiffConfig, TreeDiffForDiffusionLM, VocabularyTree, corrupt
from modeling_treediff.building.balanced import random_tree
from modeling_treediff.constraints import TokenConstraints
from modeling_treediff.diffusion_process import number_blocks
from modeling_treediff.modeling_treediff import TreeDiffLanguageModel

BACKBONE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # layers that PEFT adapts
SEQUENTIAL = {"schedule": "sequential"}  # one level after the other

TREES = [VocabularyTree.flat(20), random_tree(20, 6, 2), random_tree(20, 3, 3)]
SMALL_CONFIG = TreeDiffConfig(
    vocab_size=300, tree_depth=2, max_branching=18, num_tree_nodes=319, hidden_size=64, num_hidden_layers=3,
    num_attention_heads=4, max_position_embeddings=128,
)  # fmt: skip
# Vocabulary size, fan-out and depth of trees.
SHAPES = [(1, 1, 1), (4, 3, 4), (2, 2, 1), (5, 2, 3), (16, 2, 4), (17, 5, 2), (100, 5, 3), (97, 10, 2), (30, 30, 5)]
IDS = ["flat", "depth 2", "depth 3"]  # of TREES


def tiny_model(
    tree: VocabularyTree, kind: type[TreeDiffLanguageModel] = TreeDiffForDiffusionLM, seed: int = 0, **fields
) -> TreeDiffLanguageModel:
    """A model of a few thousand parameters with weights large enough to matter."""
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "initializer_range": 0.2,
    }
    return kind.from_tree(tree, **(sizes | fields)).eval()


def generate(model, *inputs, bad_words_ids=(), logits_processor=(), exact=False, **settings):
    """`model.generate` with TokenConstraints if some are given."""
    if bad_words_ids or logits_processor or exact:
        processors = [logits_processor] if callable(logits_processor) else logits_processor
        settings["constraints"] = TokenConstraints(bad_words_ids, processors, exact)
    return model.generate(*inputs, **settings)


def corrupted(model, shape=(4, 10), seed=0, attention_mask=None):
    """Random tokens at random times under the model's process."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    size = model.config.block_size
    numbers = None if size is None else number_blocks(tokens, attention_mask, None, size)
    masks = {"attention_mask": attention_mask, "block_numbers": numbers}
    return corrupt(tokens, model.tree, model.schedule, generator=generator, **masks)


def generate_recorded(model, seed: int = 0, **settings):
    """What `generate` returns with everything it can tell."""
    settings = {"output_history": True, "return_dict_in_generate": True} | settings
    return generate(model, generator=torch.Generator().manual_seed(seed), **settings)


def check_compiled_step(model, batches, **tolerance):
    """Assert that a training step compiles whole and once: no graph break, the eager loss and gradients, no new graph.

    The batches have the same shape.
    """
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in batches:
            results = []
            for forward in (compiled, model):
                model.zero_grad()
                loss = forward(**batch).loss
                loss.backward()
                results.append((loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
            torch.testing.assert_close(*results, **tolerance)
    torch._dynamo.reset()


def as_likelihoods_have_it(model, nodes) -> torch.Tensor:
    """(B, T) nodes -> (B, T, K) log-probabilities of their children, the uniform share in them; none at leaves."""
    present = model.tree.children[(nodes - model.tree.root_id).clamp(min=0)] >= 0
    uniform = present / present.sum(dim=-1, keepdim=True)
    share = model.config.uniform_share
    return ((1 - share) * model.child_logits(nodes).softmax(dim=-1) + share * uniform).log()


def tokens_by_enumeration(model, node_ids, place: int) -> torch.Tensor:
    """(V,) log-probabilities at a place of (T,) node ids: one forward for each node on the way to a token.

    With the sequential schedule, all others stand at most one level below the node whose children are asked for.
    """
    tree, start = model.tree, int(node_ids[place])
    log_V = torch.full((tree.vocab_size,), -torch.inf, dtype=torch.promote_types(model.dtype, torch.float32))

    @functools.cache
    @torch.no_grad()
    def children(parent: int) -> torch.Tensor:
        seen = node_ids.clone()
        if model.config.schedule == "sequential":
            for index, node in enumerate(node_ids.tolist()):
                while tree.depth[node] > tree.depth[parent] + 1:
                    node = int(tree.parent[node])
                seen[index] = node
        seen[place] = parent
        return as_likelihoods_have_it(model, seen[None])[0, place]

    for token in range(tree.vocab_size):
        path = tree.ancestors[token].tolist()
        if start in path:
            steps = list(itertools.pairwise(path[path.index(start) :]))
            log_V[token] = sum(children(parent)[tree.child_slot[child]] for parent, child in steps)
    return log_V
