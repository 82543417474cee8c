"""Configuration of a tree-structured diffusion language model."""

import math
import sys
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from transformers import PreTrainedConfig

from .vocabulary_tree import MOST_PLACES, VocabularyTree

if TYPE_CHECKING:  # transformers tells checkpoints apart by the code that this file names, here all of it
    from .modeling_treediff import TreeDiffForDiffusionLM  # noqa: F401

FORMAT_VERSION = 5  # raised when this code writes checkpoints that its older versions would read wrongly
RENAMED = {"window_lengths": "level_durations"}  # since format 1, which also said what training kept:
RENAMED |= {"recompute_mlp_layers": "make_lean(recompute_mlp=)", "loss_chunk_size": "make_lean(loss_chunk=)"}
HEADS = ("child", "node", "leaf")
NODE_EMBEDDINGS = ("path", "free", "factorised")
SCHEDULES = ("sequential", "binomial", "poisson")
TIME_WARPS = ("linear", "cosine")
USUAL_RANK = 64
LARGEST_COUNT, LARGEST_VOCABULARY = 2**20, 2**25
NOT_NEGATIVE = {"uniform_share": 1.0, "perturbation": 1.0, "lookahead": math.inf}  # fields, and what they are less than
OF_THE_VOCABULARY = ("vocab_size", "tree_depth", "max_branching", "num_tree_nodes")


class TreeDiffConfig(PreTrainedConfig):
    """Sizes of the network and shape of its vocabulary tree; use `from_tree` to take the shape from a tree.

    Attributes:
        vocab_size: V, tokens = leaves of the tree. Node ids 0..V-1 are token ids, the root (the mask) is V.
        tree_depth: D, depth of every leaf. 1 is the flat tree, with which the model is MDLM.
        max_branching: K, outputs of the prediction head per level; by default V, as in the flat tree.
        num_tree_nodes: N, leaves and internal nodes; by default V + 1, as in the flat tree.
        format_version: of the checkpoint; an older one is read, a newer one than this code knows is refused.
        tree_sha256: fingerprint of the tree; loading compares it with the tree in the weights.
        tokenizer_sha256: fingerprint of the tokenizer's ids that the tree was built for; None in older models.
        hidden_size: width of the residual stream.
        num_hidden_layers: transformer blocks.
        num_attention_heads: attention heads; hidden_size is a multiple of it.
        intermediate_size: width of the gated MLP; by default 8/3 of hidden_size, rounded up to a multiple of 8.
        max_position_embeddings: longest sequence in tokens; the default length of generated text.
        rope_theta: base of the rotary position embedding; by default that of `usual_rope_theta`.
        block_size: S, positions of a block: blocks are written one after the other, each by diffusion, and see those
            before them (arXiv 2503.09573). None: all positions are one block.
        rms_norm_eps: added to the mean square in the normalisation.
        initializer_range: standard deviation of the initial weights.
        schedule: how positions lose depth, see `noise_schedules.py`: "sequential" = one level after the other (TDLM),
            "binomial" = all levels independently, "poisson" = all with equal hazards (HDLM with gamma 2 and 1).
        level_durations: relative durations of the levels, sequential schedule, coarsest first; by default equal.
        perturbation: rate at which a node between root and tokens is shown as another child of its parent, so that the
            network learns to notice and to correct (HDLM's 1 - xi); 0: never.
        time_warp: "cosine" lets time run as 1 - cos(pi t / 2).
        num_timesteps: T, for discrete time as in D3PM; by default time is continuous.
        head: how children are scored, see `node_layers_treediff.py`: "child" = K outputs per level, "node" = an output
            vector for each node, "leaf" = V outputs. By default "node" over trees of depth 2, else "child".
        head_rank: size of the output vectors of the "node" head; by default the embedding's if shared, else 64.
        lookahead: weight in the training loss of choices farther down: a position also scores, from its hidden state,
            the children of the true nodes below the next one. The bound stays as it is. By default 1 with the "node"
            head, else 0: none.
        uniform_share: e of (1 - e) softmax + e / children, in likelihoods alone: not in training, nor in `generate`.
        node_embedding: what stands at the input for a node: "path" = the sum of its vector and its ancestors';
            "free" = its vector alone, both of one vector per node; "factorised" = the sum of vectors of the internal
            nodes on its path, and a projection of `embedding_rank` numbers of its own. By default "factorised" with the
            "node" head, else "path".
        embedding_rank: numbers per node of the factorised embedding, by default head_rank; the others have none.
        tie_word_embeddings: the "node" head and the factorised embedding have the same numbers; by default wherever
            both are there, unless embedding_rank is given.
    """

    model_type = "treediff"
    _auto_class = "AutoConfig"  # so that save_pretrained writes the code beside the config
    # So that Trainer.predict returns the logits.
    keys_to_ignore_at_inference = ["nelbo", "level_losses", "hidden_states", "past_key_values"]

    vocab_size: int = 50257
    tree_depth: int = 1
    max_branching: int = None  # type: ignore[assignment]  # such fields are filled in below
    num_tree_nodes: int = None  # type: ignore[assignment]
    format_version: int = FORMAT_VERSION
    tree_sha256: str | None = None
    tokenizer_sha256: str | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = None  # type: ignore[assignment]
    max_position_embeddings: int = 1024
    rope_theta: float = None  # type: ignore[assignment]
    block_size: int | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    schedule: str = "binomial"
    level_durations: list[float] | None = None
    perturbation: float = 0.0
    lookahead: float = None  # type: ignore[assignment]
    time_warp: str = "linear"
    num_timesteps: int | None = None
    head: str = None  # type: ignore[assignment]
    head_rank: int = None  # type: ignore[assignment]
    uniform_share: float = 0.0
    node_embedding: str = None  # type: ignore[assignment]
    embedding_rank: int | None = None
    tie_word_embeddings: bool = None  # type: ignore[assignment]
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Set derived fields, validate, and name the classes that load this config from a Hub repository."""
        if is_of(self.format_version, int) and not 1 <= self.format_version <= FORMAT_VERSION:
            raise ValueError(
                f"The model was saved in format {self.format_version}, this version of modeling-treediff reads up to "
                f"{FORMAT_VERSION}: upgrade the package, or load with trust_remote_code=True where it is not imported, "
                "which takes the code in the model's own repository."
            )
        if self.format_version == 1:
            self.level_durations = kwargs.pop("window_lengths", self.level_durations)
            kwargs = {name: value for name, value in kwargs.items() if name not in RENAMED}
        self._check_types()
        self.format_version = FORMAT_VERSION
        if moved := sorted(RENAMED.keys() & kwargs.keys()):
            raise ValueError(f"{moved[0]} is no field of the config any more: use {RENAMED[moved[0]]}.")
        # `or`: none of these may be 0.
        self.max_branching = self.max_branching or self.vocab_size
        self.num_tree_nodes = self.num_tree_nodes or self.vocab_size + 1
        self.intermediate_size = self.intermediate_size or (self.hidden_size * 8 // 3 + 7) // 8 * 8
        head_width = self.hidden_size // self.num_attention_heads
        self.rope_theta = self.rope_theta or usual_rope_theta(self.max_position_embeddings, head_width)
        if self.head is None:
            self.head = "node" if self.tree_depth == 2 else "child"
        by_node = self.head == "node"
        if self.lookahead is None:
            self.lookahead = float(by_node)
        if self.node_embedding is None:
            self.node_embedding = "factorised" if by_node else "path"
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = by_node and self.node_embedding == "factorised" and self.embedding_rank is None
        if self.head_rank is None:
            self.head_rank = (self.embedding_rank or self.hidden_size) if self.tie_word_embeddings else USUAL_RANK
        if self.node_embedding == "factorised" and self.embedding_rank is None:
            self.embedding_rank = self.head_rank
        self._check_values()
        kwargs.pop("num_labels", None)  # there are none, and transformers would name each
        try:
            super().__post_init__(**kwargs)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"The config has a value that transformers does not understand: {error}.") from error
        if self.dtype is not None and type(self.dtype).__name__ != "dtype":
            raise ValueError(f"dtype must be a name such as 'float32', got {self.dtype!r}.")
        diffusion, masked = (f"modeling_treediff.TreeDiffFor{kind}LM" for kind in ("Diffusion", "Masked"))
        self.auto_map = {"AutoConfig": "configuration_treediff.TreeDiffConfig", "AutoModel": diffusion}
        self.auto_map |= {"AutoModelForMaskedLM": masked, "AutoModelForCausalLM": diffusion}

    @classmethod
    def from_tree(cls, tree: VocabularyTree, **kwargs: Any) -> "TreeDiffConfig":
        """Return the config of a model over a tree; kwargs are the other fields."""
        shape: dict[str, Any] = {
            "vocab_size": tree.vocab_size,
            "tree_depth": tree.tree_depth,
            "max_branching": tree.max_branching,
            "num_tree_nodes": tree.num_nodes,
            "tree_sha256": tree.sha256,
            "tokenizer_sha256": tree.metadata.get("tokenizer_sha256"),
        }
        if clash := sorted(shape.keys() & kwargs.keys()):
            raise ValueError(f"{', '.join(clash)} come from the tree; leave them out.")
        return cls(**shape, **kwargs)

    @property
    def mask_token_id(self) -> int:
        """The root of the tree: what a fully corrupted position holds."""
        return self.vocab_size

    def _check_types(self) -> None:
        check_types(self, TreeDiffConfig)
        for name, kind in TreeDiffConfig.__annotations__.items():
            value = getattr(self, name)
            said, most = repr(value)[:40], LARGEST_VOCABULARY if name in OF_THE_VOCABULARY else LARGEST_COUNT
            counts = kind is int or name in ("num_timesteps", "embedding_rank", "block_size")
            if counts and value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} must be at least 1, and at most {most:,}, got {said}.")
            if kind is float and value is not None and value <= 0 and name not in NOT_NEGATIVE:
                raise ValueError(f"{name} must be positive, got {said}.")

    def _check_values(self) -> None:
        for name, limit in NOT_NEGATIVE.items():
            if not 0 <= (value := getattr(self, name)) < limit:
                raise ValueError(f"{name} must be at least 0 and less than {limit:g}, got {value}.")
        if self.perturbation and (self.tree_depth == 1 or self.num_timesteps or self.uniform_share):
            hint = "a tree of depth 2 or more, continuous time, and no uniform_share"
            raise ValueError(f"perturbation needs nodes between root and tokens: use {hint}.")
        width, heads = self.hidden_size, self.num_attention_heads
        if width % (2 * heads):  # rotation takes pairs of features
            raise ValueError(f"hidden_size={width} must be an even multiple of num_attention_heads={heads}.")
        tokens, depth, fan_out, nodes = self.vocab_size, self.tree_depth, self.max_branching, self.num_tree_nodes
        if max(depth, fan_out) > tokens or fan_out ** min(depth, tokens.bit_length()) < tokens:
            raise ValueError(f"{tokens} tokens do not fit a tree of depth {depth} with fan-out {fan_out}.")
        if not tokens + depth <= nodes <= min(tokens * depth + 1, tokens + MOST_PLACES // fan_out):
            raise ValueError(f"num_tree_nodes={nodes} is impossible for {tokens} leaves at depth {depth}.")
        choices = {"head": HEADS, "node_embedding": NODE_EMBEDDINGS, "schedule": SCHEDULES, "time_warp": TIME_WARPS}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Unknown {name} {value!r}; known: {', '.join(known)}.")
        if self.level_durations is not None and self.schedule != "sequential":
            raise ValueError("level_durations belong to schedule='sequential': give both or neither.")
        factorised = self.node_embedding == "factorised"
        if self.embedding_rank is not None and not factorised:
            raise ValueError("embedding_rank belongs to node_embedding='factorised': give both or neither.")
        if self.tie_word_embeddings and not (
            factorised and self.head == "node" and self.embedding_rank == self.head_rank
        ):
            raise ValueError(
                "tie_word_embeddings needs node_embedding='factorised', head='node' and embedding_rank=head_rank."
            )


def usual_rope_theta(length: int, head_width: int) -> float:
    """Return the least power of ten, from 100 on, that is neither below the length nor below `least_rope_theta`."""
    return 10.0 ** max(2, math.ceil(math.log10(max(length, least_rope_theta(length, head_width)))))


def least_rope_theta(length: int, head_width: int) -> float:
    """Return the least base of which the slowest pair of features goes at most half around within a window.

    With a smaller one it no longer tells a distance to the left from one to the right: distances lie in (-length,
    length), and a turn takes 2 pi base^(1 - 2 / width of a head) positions. A head of width 2 has no slower pair.
    """
    return (length / math.pi) ** (head_width / (head_width - 2)) if head_width > 2 else 0.0


def check_types(settings: Any, owner: type) -> None:
    """Raise ValueError for a setting that is neither its class's default nor of the type it is annotated with there."""
    for name, kind in owner.__annotations__.items():
        if (value := getattr(settings, name)) is not getattr(owner, name) and not is_of(value, kind):
            raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}, got {repr(value)[:40]}.")


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as annotations write it; a whole number is a float, a tuple is a list."""
    if isinstance(kind, UnionType):
        return any(is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(is_of(one, get_args(kind)[0]) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
