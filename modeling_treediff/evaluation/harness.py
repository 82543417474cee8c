"""lm-evaluation-harness on tree diffusion models: its model `treediff`. Needs the extra `harness`.

    python -m modeling_treediff.evaluation.harness --model treediff --model_args pretrained=my_model \
        --include_path examples/harness_tasks --tasks sotu_perplexity,sotu_cloze --batch_size 32

This is the harness's own command line: it knows only models that are imported, so this file starts it. In Python,
`lm_eval.simple_evaluate(HarnessModel(model, tokenizer), tasks=...)`.

What the harness calls a log-likelihood is here a lower bound on it, -NELBO, estimated by Monte Carlo: perplexities are
upper bounds, and choices are ranked by their bounds. Each request draws noise that depends on the seed and on its own
context alone: on the same device and with the same batch size its answer is the same whatever is asked beside it, and
the choices of one question are measured under the same noise. `get_model_info`, part of the harness's results, says how
noisy they were.

Shape legend: B sequences, T positions.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
except ModuleNotFoundError as error:
    raise ImportError("The harness's model needs lm-eval: pip install 'modeling-treediff[harness]'.") from error

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.generation_config_treediff import ORDERED
from modeling_treediff.text.mask_token import refuse_mask
from modeling_treediff.text.tree_tokenizer import check_tokenizer, load_tokenizer
from modeling_treediff.vocabulary_tree import HUB_OPTIONS

from .answer_bound import AnswerBound, answer_bound
from .greedy import is_greedy
from .perplexity import evaluate_texts
from .windows import EvaluationWindows, WindowProtocol, cut_windows

NUM_SAMPLES = 128  # corruptions of a continuation, as LLaDA's evaluation takes (arXiv 2502.09992)
MAX_NEW_TOKENS = 256  # where a task does not say; what the harness takes for other models

Encoded = tuple[tuple[str, str], list[int], list[int]]  # (context, continuation), tokens of the one, of the other


@register_model("treediff")
class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """The harness's model interface: log-likelihood bounds of continuations and whole texts, and generation.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        standard_errors: kind of request -> Monte Carlo standard error of each answer so far, in nats.

    """

    def __init__(
        self,
        pretrained: TreeDiffForDiffusionLM | str | Path,
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        *,
        num_samples: int = NUM_SAMPLES,
        rolling_samples: int | None = None,
        seed: int = 0,
        batch_size: int | str = 32,
        max_batch_size: int | None = None,
        device: str | None = None,
        **loading: Any,
    ) -> None:
        """Load a model, or take one that is loaded; the harness passes its `--model_args` by these names.

        Args:
            pretrained: folder or Hub repository, or the model itself, then with its tokenizer.
            tokenizer: or the folder or repository of another one of the same tokens.
            num_samples: corruptions of each continuation, best a multiple of the tree's depth; the noise of an answer
                falls with its square root.
            rolling_samples: corruptions of each window of a whole text; by default those of `evaluate_texts`.
            seed: of everything.
            batch_size: sequences per forward pass.
            max_batch_size: ignored; of batch_size="auto", which there is not.
            device: where to put a model that is loaded here: a GPU if there is one, else the CPU.
            loading: options of `from_pretrained`: revision, subfolder, dtype and others.

        Raises:
            ValueError: a batch size that is no number, a model without a tokenizer, or one of another tree.

        """
        super().__init__()
        if not str(batch_size).isdecimal() or not int(batch_size):
            raise ValueError(f"treediff needs a number as --batch_size, at least 1, got {batch_size!r}.")
        if isinstance(pretrained, TreeDiffForDiffusionLM):
            self.model = pretrained
        else:
            if not torch.cuda.is_available() and "cuda" in (device or "cuda"):
                device = "cpu"  # the harness asks for a GPU unless told otherwise
            self.model = TreeDiffForDiffusionLM.from_pretrained(pretrained, **loading)
            torch.nn.Module.to(self.model, device or "cuda")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            if not (source := tokenizer or self.model.config.name_or_path):
                raise ValueError("A model that was not loaded needs its tokenizer beside it.")
            hub = {name: loading[name] for name in HUB_OPTIONS if name in loading}
            tokenizer = load_tokenizer(str(source), **hub)
        check_tokenizer(self.model.eval().tree, tokenizer)
        self.tokenizer, self.seed, self.batch_size = tokenizer, seed, int(batch_size)
        self.num_samples, self.rolling_samples = num_samples, rolling_samples
        self.standard_errors: dict[str, list[float]] = {"loglikelihood": [], "loglikelihood_rolling": []}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at once."""
        return self.model.config.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token: it separates texts in training, so it stands before one without a context."""
        if self.tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no eos_token to stand before a text without a context.")
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness caches requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the tokens of a text, without any added, as in training; ValueError for one that holds the mask."""
        token_ids = self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]
        refuse_mask(token_ids, self.tokenizer, "A text of a task")
        return token_ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as the text that the tokenizer's chat template makes of it."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness's results record of the model and of the meaning of its figures."""
        return {
            "likelihoods": "lower bounds (-NELBO), Monte Carlo estimates; perplexities are upper bounds",
            "rolling_protocol": str(WindowProtocol.for_model(self.model, self.tokenizer)),
            "num_samples": self.num_samples,
            "rolling_samples": self.rolling_samples or self.model.config.tree_depth,
            "seed": self.seed,
            "mean_standard_error_nats": {
                kind: float(np.mean(errors)) for kind, errors in self.standard_errors.items() if errors
            },
            "model_num_parameters": self.model.num_parameters(),
            "model_dtype": str(self.model.dtype),
        }

    def _loglikelihood_tokens(
        self,
        requests: list[Encoded],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Return for each continuation the bound on its log-probability given the context, and `is_greedy`.

        The context is cut on the left to what fits the model's window beside the continuation. A continuation longer
        than the window is measured as a whole text is, in windows, the context out of sight.
        """
        windows = [self._windows(context, continuation) for _, context, continuation in requests]
        greedy = self._are_greedy(windows)
        answers = []
        for (request, *_), cut in zip(tqdm(requests, "loglikelihood", disable=disable_tqdm), windows, strict=True):
            bound = self._bound(cut, torch.Generator(self.device).manual_seed(request_seed(self.seed, request[0])))
            self.standard_errors["loglikelihood"].append(bound.standard_error)
            answers.append((-bound.nats, all([next(greedy) for _ in range(len(cut))])))
            self.cache_hook.add_partial("loglikelihood", request, answers[-1])
        return answers

    def _bound(self, cut: EvaluationWindows, generator: torch.Generator) -> AnswerBound:
        """Return the bound of a continuation: in one window `answer_bound`, where it knows the model; else `nelbo`."""
        settings, config = (self.num_samples, self.batch_size, generator), self.model.config
        if len(cut) == 1 and config.block_size is None and not self.model.schedule.perturbation:
            return answer_bound(self.model, cut.token_ids, cut.fixed_mask, *settings)
        found = self.model.nelbo(cut.token_ids, cut.attention_mask, cut.fixed_mask, *settings)
        return AnswerBound(found.value * found.num_tokens, found.standard_error * found.num_tokens)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return for each whole text the bound on its log-probability: `evaluate_texts` of that text alone.

        The end-of-sequence token after it counts, as there. The seed is `request_seed(seed, text)`.
        """
        answers = []
        for (text,) in tqdm([request.args for request in requests], "loglikelihood_rolling", disable=disable_tqdm):
            result = evaluate_texts(
                self.model,
                self.tokenizer,
                [text],
                num_samples=self.rolling_samples,
                batch_size=self.batch_size,
                seed=request_seed(self.seed, text),
            )
            self.standard_errors["loglikelihood_rolling"].append(result.standard_error * result.num_tokens)
            answers.append(-result.nelbo * result.num_tokens)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
        return answers

    def _windows(self, context: list[int], continuation: list[int]) -> EvaluationWindows:
        """Return the windows in which a continuation counts, given what fits of its context."""
        if not continuation:
            raise ValueError("A task asks for the likelihood of a continuation without tokens.")
        if len(continuation) > self.max_length:
            return cut_windows(np.array(continuation), WindowProtocol(self.max_length, self.max_length))
        row = torch.tensor([(context + continuation)[-self.max_length :]])
        given = (torch.arange(row.shape[1]) < row.shape[1] - len(continuation)).long()[None]
        return EvaluationWindows(row, torch.ones_like(row), given)

    def _are_greedy(self, windows: Sequence[EvaluationWindows]) -> Iterator[bool]:
        """Yield for each row of the windows whether it `is_greedy`."""
        rows = [row for cut in windows for row in zip(cut.token_ids, cut.attention_mask, cut.fixed_mask, strict=True)]
        for start in range(0, len(rows), self.batch_size):
            batch = zip(*rows[start : start + self.batch_size], strict=True)
            inputs = [pad_sequence(list(column), batch_first=True).to(self.device) for column in batch]
            yield from is_greedy(self.model, *inputs)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context, up to the first of its task's stop strings or to the end of text.

        A task's `generation_kwargs`, and `--gen_kwargs`, may hold any setting of `generate`. By default it is greedy:
        the surest positions first, each taking its likeliest child. What does not fit the model's window beside its
        context is written in blocks, by default of half a window; a model that has blocks sees as much of the text.
        """
        repeats: Counter[str] = Counter()
        jobs = []
        for index, (context, options) in enumerate(request.args for request in requests):
            token_ids = self.tok_encode(context)[-self.max_length :]
            settings = json.dumps(self._settings(options, len(token_ids)), sort_keys=True)
            repeats[asked := json.dumps([context, options], sort_keys=True)] += 1
            seed = request_seed(self.seed, context, repeats[asked])
            jobs.append((settings, len(token_ids), index, token_ids, seed))
        answers = [""] * len(requests)
        with tqdm(total=len(jobs), desc="generate_until", disable=disable_tqdm) as bar:
            for (settings, _), alike in groupby(sorted(jobs), key=_alike):
                while batch := list(islice(alike, self.batch_size)):
                    _, _, indices, contexts, seeds = zip(*batch, strict=True)
                    for index, new in zip(indices, self._write(contexts, seeds, json.loads(settings)), strict=True):
                        context, options = requests[index].args
                        answers[index] = self._cut(new, options.get("until"))
                        self.cache_hook.add_partial("generate_until", (context, options), answers[index])
                    bar.update(len(batch))
        return answers

    def _settings(self, options: dict[str, Any], context_length: int) -> dict[str, Any]:
        """Return the settings of `generate` for a task's options and a context of `context_length` tokens."""
        settings = dict(normalize_gen_kwargs(options, MAX_NEW_TOKENS))
        settings.pop("until")
        settings["max_new_tokens"] = settings.pop("max_gen_toks")
        if not settings["do_sample"]:
            settings.pop("temperature", None)  # 0, which is what greedy means elsewhere
            if self.model.generation_config.unmasking not in ORDERED:
                settings.setdefault("unmasking", "confidence")
        if context_length + settings["max_new_tokens"] > self.max_length:
            own, size = self.model.generation_config, self.model.config.block_size
            name = "block_length" if size is None else "sliding_window"
            half = max(math.ceil(self.max_length / 2), (size or 0) + 1)
            settings.setdefault(name, getattr(own, name) or min(half, self.max_length))
        return settings

    def _write(self, contexts: Sequence[list[int]], seeds: Sequence[int], settings: dict[str, Any]) -> list[list[int]]:
        """Return the tokens that follow each context."""
        rows = [torch.tensor(context, dtype=torch.long) for context in contexts]
        nodes_BT = pad_sequence(rows, batch_first=True)
        real_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        inputs = (nodes_BT.to(self.device), real_BT.to(self.device))
        return self.model.generate(*inputs, **settings, generator=generators)[:, nodes_BT.shape[1] :].tolist()

    def _cut(self, token_ids: list[int], until: list[str] | str | None) -> str:
        """Return new tokens as text, up to the end of text and to the first stop string."""
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        text = self.tokenizer.decode(list(takewhile(lambda token: token not in ends, token_ids)))
        return postprocess_generated_text(text, handle_stop_sequences(until, None), None)


def _alike(job: tuple[Any, ...]) -> tuple[str, int]:
    """Return what the texts of a batch share; a window slides over all at once, so with one also their length."""
    settings, length, *_ = job
    return settings, length if "sliding_window" in settings else 0


def request_seed(seed: int, context: str, repeat: int = 1) -> int:
    """Return the seed of a request: a hash of the harness's seed, the request's text, and its number."""
    key = json.dumps([seed, context, repeat]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:7], "big")


if __name__ == "__main__":
    cli_evaluate()
