"""lm-evaluation-harness on our models: its figures against `nelbo` and `evaluate_texts`, tasks on one that knows them.

Without lm-eval (extra `harness`) all but the message about it is skipped.
"""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.eight_words import BINARY, FLAT, TEXTS, make_tokenizer, uniform_model
from helpers.models import SEQUENTIAL, tiny_model
from helpers.processes import REPOSITORY, SAMPLE, environment_on_the_cpu, run_python
from torch.nn.utils.rnn import pad_sequence

from modeling_treediff import VocabularyTree, corrupt
from modeling_treediff.evaluation import WindowProtocol, cut_windows, evaluate_texts, tokenize_texts
from modeling_treediff.evaluation.answer_bound import answer_bound
from modeling_treediff.hub import save_checkpoint

TASKS = REPOSITORY / "examples" / "harness_tasks"
LONG = " ".join(TEXTS * 3)  # 42 tokens, windows have 16


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'modeling-treediff[harness]'")
    from modeling_treediff.evaluation import harness

    return harness


@pytest.fixture(params=[BINARY, FLAT], ids=["tree", "flat"])
def small(harness, request):
    return harness.HarnessModel(
        tiny_model(request.param, head="child", **SEQUENTIAL), make_tokenizer(), num_samples=6, batch_size=4
    )


def requests(*arguments):
    """What the methods read of the harness's instances."""
    return [SimpleNamespace(args=some) for some in arguments]


def encode(text):
    return make_tokenizer()(text)["input_ids"]


# ---- likelihoods ----------------------------------------------------------------------------------------------------


def test_whole_texts_have_the_bound_of_evaluation(harness, small):
    texts = [LONG, "the", *TEXTS]
    answers = small.loglikelihood_rolling(requests(*[(text,) for text in texts]))
    for text, answer, error in zip(texts, answers, small.standard_errors["loglikelihood_rolling"], strict=True):
        seed = harness.request_seed(0, text)
        result = evaluate_texts(small.model, small.tokenizer, [text], batch_size=4, seed=seed)
        assert result.num_windows == math.ceil((len(text.split()) + 1) / 16)
        assert answer == -result.nelbo * result.num_tokens and error == result.standard_error * result.num_tokens
    assert small.loglikelihood_rolling(requests(("the",))) == [answers[1]]  # whatever is asked beside it


def test_a_continuation_has_the_conditional_bound(harness, small):
    answers = small.loglikelihood(requests(("a b the", " c d"), ("c", " the a b é"), ("a b the", " é")))
    for context, continuation, (answer, _) in zip(
        ["a b the", "c", "a b the"], ["c d", "the a b é", "é"], answers, strict=True
    ):
        row = torch.tensor([encode(context) + encode(continuation)])
        given = (torch.arange(row.shape[1]) < len(encode(context)))[None]
        generator = torch.Generator().manual_seed(harness.request_seed(0, context))
        assert answer == -answer_bound(small.model, row, given, 6, 4, generator).nats
    assert small.loglikelihood(requests(("a b the", " é"))) == [answers[2]]
    errors = small.get_model_info()["mean_standard_error_nats"]
    assert (
        errors["loglikelihood"] == pytest.approx(np.mean(small.standard_errors["loglikelihood"])) and len(errors) == 1
    )


def test_what_does_not_fit_is_cut_on_the_left_and_long_continuations_are_cut_into_windows(harness, small):
    seed = harness.request_seed(0, LONG)

    ((near, _), (far, _)) = small.loglikelihood(requests((LONG, " é c"), (LONG, " " + LONG)))
    row = torch.tensor([encode(LONG)[-14:] + encode("é c")])
    given = (torch.arange(16) < 14)[None]
    assert near == -answer_bound(small.model, row, given, 6, 4, torch.Generator().manual_seed(seed)).nats
    windows = cut_windows(tokenize_texts([LONG], small.tokenizer, eos=False), WindowProtocol(16, 16))
    inputs = (windows.token_ids, windows.attention_mask, windows.fixed_mask)
    bound = small.model.nelbo(*inputs, 6, 4, torch.Generator().manual_seed(seed))
    assert far == -bound.value * bound.num_tokens and len(windows) == 3


@pytest.mark.parametrize("tree", [BINARY, FLAT])
def test_the_uniform_model_is_measured_exactly(harness, tree):
    model = harness.HarnessModel(uniform_model(tree), make_tokenizer(), num_samples=3)
    answers = model.loglikelihood(requests(("", "a b c"), ("a b", " c d é"), (LONG, f" {LONG}")))
    expected = [-count * math.log(8) for count in (3, 3, 42)]
    assert [answer for answer, _ in answers] == pytest.approx(expected, rel=1e-5)
    assert model.loglikelihood_rolling(requests((LONG,))) == pytest.approx([-43 * math.log(8)], rel=1e-5)


def test_blocks_of_one_token_are_measured_as_an_autoregressive_model(harness):
    """Over a flat tree: the exact log-probability of each token given those before it, also across windows."""
    small = harness.HarnessModel(tiny_model(FLAT, block_size=1, **SEQUENTIAL), make_tokenizer(), num_samples=2)

    def exact(row, given):
        total = 0.0
        for place in range(given, len(row)):
            with torch.no_grad():
                logits = small.model(torch.tensor([[*row[:place], small.model.config.mask_token_id]])).logits[0, -1]
            total += float(logits.log_softmax(dim=-1)[row[place]])
        return total

    context, answer = encode("a b the"), encode("c d é a")
    (found,) = small.loglikelihood(requests(("a b the", " c d é a")))
    assert found[0] == pytest.approx(exact(context + answer, len(context)), rel=1e-4)
    ((near, _),) = small.loglikelihood(requests((LONG, " é c")))
    assert near == pytest.approx(exact(encode(LONG)[-14:] + encode("é c"), 14), rel=1e-4)
    rolled = small.loglikelihood_rolling(requests(("a b the c",)))
    assert rolled == pytest.approx([exact([*encode("a b the c"), small.tokenizer.eos_token_id], 0)], rel=1e-4)
    with pytest.raises(ValueError, match="use nelbo"):
        answer_bound(small.model, torch.tensor([context]), torch.tensor([[1, 1, 0]]), 2, 4)


def test_a_model_with_blocks_writes_beyond_its_window_and_stops(harness):
    small = harness.HarnessModel(tiny_model(BINARY, block_size=5, **SEQUENTIAL), make_tokenizer(), batch_size=2)
    asked = requests(*[(context, {"max_gen_toks": 40, "suppress_tokens": [0]}) for context in ("c", "a b the", LONG)])
    texts = small.generate_until(asked)
    assert [len(text.split()) for text in texts] == [40] * 3
    assert small.generate_until(asked[1:2]) == texts[1:2]


# ---- a model that knows the answers, through the harness's own evaluator ---------------------------------------------

QUESTIONS = [("a a b", "c d d"), ("b b a", "d c the"), ("the c", "é é a"), ("d", "the the é")]


@pytest.fixture(scope="module")
def knowing():
    """Trained on the questions, each with its own answer, until it knows them by heart."""
    model = tiny_model(BINARY, max_position_embeddings=8, initializer_range=0.1).train()
    rows = [(encode(context), encode(answer)) for context, answer in QUESTIONS] * 8

    def columns(values):
        return pad_sequence([torch.tensor(row) for row in values], batch_first=True)

    tokens = columns([context + answer for context, answer in rows])
    given = columns([[1] * len(context) + [0] * len(answer) for context, answer in rows])
    mask = columns([[1] * len(context + answer) for context, answer in rows])
    optimizer, random = torch.optim.AdamW(model.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(150):
        noisy = corrupt(tokens, BINARY, model.schedule, None, random, mask, given)
        optimizer.zero_grad()
        model(**vars(noisy), attention_mask=mask).loss.backward()
        optimizer.step()
    return model.eval()


def write_tasks(folder):
    """A task of each kind as YAML and JSON lines, as people write them."""
    answers = [answer for _, answer in QUESTIONS]
    rows = [
        {"context": context, "answer": answer, "choices": answers, "right": index}
        for index, (context, answer) in enumerate(QUESTIONS)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
    }
    choice = {"doc_to_choice": "{{choices}}", "doc_to_target": "{{right}}", "metric_list": [{"metric": "acc"}]}
    word = {"doc_to_target": " {{answer}}", "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}]}
    text = {"doc_to_target": "{{answer}}", "metric_list": [{"metric": "exact_match"}]}
    text["generation_kwargs"] = {"max_gen_toks": 3, "until": []}
    kinds = {"multiple_choice": choice, "loglikelihood": word, "generate_until": text}
    for kind, fields in kinds.items():
        task = {"task": f"own_{kind}", "output_type": kind} | common | fields
        (folder / f"{kind}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return [f"own_{kind}" for kind in kinds]


@pytest.mark.parametrize("batch_size", [1, 32])
def test_a_model_that_knows_the_answers_gets_them_right(harness, knowing, tmp_path, batch_size):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    model = harness.HarnessModel(knowing, make_tokenizer(), num_samples=12, batch_size=batch_size)
    tasks, manager = write_tasks(tmp_path), TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    results = found["results"]
    assert results["own_multiple_choice"]["acc,none"] == 1
    assert results["own_loglikelihood"]["acc,none"] == 1  # greedy filling gives the answer
    assert 1 < results["own_loglikelihood"]["perplexity,none"] < 2  # e to the mean nats of an answer
    assert results["own_generate_until"]["exact_match,none"] == 1
    wrong = [answer for sample in found["samples"]["own_multiple_choice"] for answer in sample["filtered_resps"]]
    assert sum(greedy for _, greedy in wrong) == len(QUESTIONS)  # one in four
    assert "lower bounds" in found["config"]["likelihoods"] and found["config"]["num_samples"] == 12


def test_chat_templates_go_around_the_questions(harness, small, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    turns = "{% for m in messages %}a {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}b{% endif %}"
    small.tokenizer.chat_template = turns
    tasks, manager = write_tasks(tmp_path), TaskManager(include_path=str(tmp_path), include_defaults=False)
    settings = {"task_manager": manager, "limit": 1, "bootstrap_iters": 0, "apply_chat_template": True}
    (sample,) = simple_evaluate(small, tasks=tasks[2:], **settings)["samples"]["own_generate_until"]
    assert sample["arguments"][0][0] == f"a {QUESTIONS[0][0]} b"


# ---- new texts ------------------------------------------------------------------------------------------------------


def test_texts_are_the_same_alone_and_in_a_batch_and_end_at_stop_strings(small):
    sampled = {"max_gen_toks": 9, "do_sample": True, "temperature": 1.0}
    asked = [("a b the", sampled), (LONG, sampled), ("c", sampled), ("c", sampled), ("", sampled)]
    asked += [(context, {**options, "until": ["b", "é"]}) for context, options in asked[:3]]
    texts = small.generate_until(requests(*asked))
    alone = [small.generate_until(requests(some))[0] for some in asked]
    assert texts[:3] == alone[:3] and texts[4:] == alone[4:]
    assert texts[2] == alone[3] != texts[3]  # asked twice, drawn twice
    for whole, cut in zip(texts[:2], texts[5:7], strict=True):
        stops = [place for stop in "bé" if (place := whole.find(stop)) >= 0]
        assert cut == whole[: min(stops, default=len(whole))] != whole


def test_texts_longer_than_the_window_are_written_in_blocks(small):
    for context in ("c", LONG):
        (text,) = small.generate_until(requests((context, {"max_gen_toks": 40, "suppress_tokens": [0]})))
        assert len(text.split()) == 40
        (blocks,) = small.generate_until(
            requests((context, {"max_gen_toks": 40, "suppress_tokens": [0], "block_length": 3}))
        )
        assert len(blocks.split()) == 40 and blocks != text


def test_a_text_ends_at_its_end(harness):
    model = tiny_model(FLAT)
    with torch.no_grad():
        model.head.levels[0].bias[0] += 100  # nothing but <eos>
    assert harness.HarnessModel(model, make_tokenizer()).generate_until(requests(("a", {"max_gen_toks": 4}))) == [""]


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do(harness, small):
    for batch_size in ("auto", 0, "0", -1, True, 1.5):
        with pytest.raises(ValueError, match=f"number as --batch_size, at least 1, got {batch_size!r}"):
            harness.HarnessModel(small.model, small.tokenizer, batch_size=batch_size)
    with pytest.raises(ValueError, match="needs its tokenizer"):
        harness.HarnessModel(small.model)
    with pytest.raises(ValueError, match="Unknown generation option num_beams"):
        small.generate_until(requests(("a", {"num_beams": 4})))
    with pytest.raises(ValueError, match="without tokens"):
        small.loglikelihood(requests(("a b", " ")))
    with pytest.raises(ValueError, match="no eos_token"):
        harness.HarnessModel(small.model, make_tokenizer(eos=None)).loglikelihood(requests(("", "a")))


def test_without_the_harness_the_extra_is_named():
    code = "import sys; sys.modules['lm_eval'] = None; import modeling_treediff.evaluation.harness"
    ran = run_python(code=code, **environment_on_the_cpu())
    assert ran.stderr.strip().endswith("pip install 'modeling-treediff[harness]'.")


# ---- as people run it -----------------------------------------------------------------------------------------------


def test_the_command_line_runs_the_tasks_of_the_examples(harness, tokenizer, tmp_path):
    tree = VocabularyTree.from_pretrained(SAMPLE)
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "initializer_range": 0.02}
    save_checkpoint(tiny_model(tree, head="child", **sizes), tmp_path / "model", tokenizer)
    ran = run_python(
        *["-m", "modeling_treediff.evaluation.harness", "--model", "treediff", "--include_path", TASKS],
        *["--model_args", f"pretrained={tmp_path / 'model'},num_samples=4,dtype=float32", "--batch_size", "64"],
        *["--tasks", "sotu_perplexity,sotu_cloze,sotu_ending", "--limit", "1", "--output_path", tmp_path / "out"],
        **environment_on_the_cpu(),
    )
    assert ran.returncode == 0, ran.stderr
    (record,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(record.read_text(encoding="utf-8"))
    # Hardly trained: close to uniform over 8192 tokens of about 4.7 bytes.
    assert found["results"]["sotu_perplexity"]["bits_per_byte,none"] == pytest.approx(13 / 4.7, rel=0.1)
    assert 0 <= found["results"]["sotu_cloze"]["acc,none"] <= 1 and "sotu_ending" in found["results"]
    assert found["config"]["num_samples"] == 4 and found["config"]["mean_standard_error_nats"]["loglikelihood"] > 0
