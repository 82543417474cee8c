"""The YAML head of a model card: license, data sets, base model and measured results, as the Hub takes them."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_treediff.text.token_kinds import printable

from .records import number

# Of https://huggingface.co/docs/hub/repositories-licenses; the Hub refuses others.
HUB_LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1
    lgpl-3.0 lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl
    postgresql unknown unlicense wtfpl zlib
    """.split()
)


def describe(data: ModelCardData, name: str, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Add to a card's metadata what the records state and measured.

    Args:
        data: of the template; what it says stays.
        name: of the model, in the results.
        training: the record of `treediff train`, empty if there is none.
        evaluation: the record of `treediff evaluate`, empty if there is none.

    """
    if license := training.get("license"):
        slug = _slug(license.lower())
        data.license, data.license_name = (slug, None) if slug in HUB_LICENSES else ("other", slug)
    data.language = training.get("language")
    text = _hub_id(training.get("text"))
    data.datasets = [text] if text else None
    data.base_model = _hub_id(training.get("base_model"))
    if results := [*_training_results(training), *_evaluation_results(evaluation)]:
        data.model_name, data.eval_results = name, results
        data.metrics = list(dict.fromkeys(result.metric_type for result in results))


def _hub_id(source: Mapping[str, Any] | None) -> str | None:
    """Return the Hub id of a source; None if it is not on the Hub."""
    if not source or not source["on_hub"]:
        return None
    try:
        validate_repo_id(source["name"])
    except HFValidationError:
        return None
    return source["name"]


def _training_results(record: Mapping[str, Any]) -> Iterator[EvalResult]:
    if held_out := record.get("validation_text"):
        yield from _results(record, held_out)
    elif text := record.get("text"):
        yield from _results(record, text | {"split": "held-out"})


def _evaluation_results(record: Mapping[str, Any]) -> Iterator[EvalResult]:
    for row in record.get("texts", []):
        yield from _results(row, row["source"], record.get("limit"))


def _results(measured: Mapping[str, Any], source: Mapping[str, Any], limit: int | None = None) -> Iterator[EvalResult]:
    """Yield what was measured on a text, or on its first `limit` documents, unrounded."""
    part = f", of the first {limit:,} documents" if limit else ""
    unknown = number(measured, "num_unknown")
    if unknown:
        part += f", with {unknown:,} unknown tokens"
    nats = number(measured, "nelbo")
    error = number(measured, "nelbo_standard_error") or number(measured, "standard_error")
    metrics = {
        "perplexity": ("Perplexity, upper bound", None if nats is None else _finite_exp(nats)),
        "nelbo": ("NELBO, nats per token", nats),
        # Results of other tokenizers' models stand beside these: with unknown tokens bits per byte do not compare.
        "bits_per_byte": ("Bits per byte, upper bound", None if unknown else number(measured, "bits_per_byte")),
    }
    for kind, (name, value) in metrics.items():
        if value is not None:
            yield EvalResult(
                task_type="text-generation",
                dataset_type=_hub_id(source) or _slug(source["name"]),
                dataset_name=printable(source["name"]),
                dataset_config=_printable(source.get("configuration")),
                dataset_split=_printable(source.get("split")),
                metric_type=kind,
                metric_name=name + part,
                metric_value=value,
                metric_args={"standard_error": error} if kind == "nelbo" and error is not None else None,
            )


def _printable(text: str | None) -> str | None:
    return text and printable(text)


def _finite_exp(value: float) -> float | None:
    try:
        return math.exp(value)
    except OverflowError:
        return None


def _slug(name: str) -> str:
    """Return a name as the Hub allows one: letters, digits, and single `-`, `_`, `.` between them."""
    return re.sub(r"[-._]{2,}", "-", re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)).strip("-._") or "text"
