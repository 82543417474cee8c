"""`treediff app`: a page on which a saved model writes, in the browser."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from typing import Any

try:
    import gradio
except ImportError as error:
    raise ImportError("The page needs gradio: pip install 'modeling-treediff[demo]'.") from error
import torch
from transformers import PreTrainedTokenizerBase

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.generation_config_treediff import UNMASKING
from modeling_treediff.viewing.drafts import (
    DraftRecorder,
    ShownDraft,
    depth_name,
    draft_html,
    draft_style,
    iterate_newest,
    legend_html,
)

from .generate import starting_nodes
from .options.app import Service
from .saved_model import load_model

Answer = tuple[Any, Any, Any]  # HTML of the text, change of the level slider, drafts for it
SECONDS_PER_TEXT = 3.0  # at least: small models are faster than the eye
CHARACTERS_PER_POSITION = 32  # of the longest text that is tokenised at all
VISITORS = 16  # whose texts are written at the same time; others wait
THREADS_PER_TEXT = 2  # on a CPU
PLACEHOLDER = "<div class='draft'><p class='draft-caption'>The text appears here.</p></div>"
STYLE = """
.page { max-width: 1180px; margin: 0 auto; }
:is(.draft, .draft-legend) { color-scheme: light; }
.dark :is(.draft, .draft-legend) { color-scheme: dark; }
.draft { padding: 16px 18px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.draft-text { min-height: 9em; }
.page .html-container { padding: 0; }
.draft-error { padding: 12px 16px; border: 1px solid #c4122f; border-radius: 8px; }
"""


def run(service: Service) -> None:
    """Load the model and serve the page."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load_model(service.model, trust_remote_code=service.trust_remote_code, device=device)
    at_once = max(1, (os.cpu_count() or 1) // THREADS_PER_TEXT) if device == "cpu" else 1
    torch.set_num_threads(min(THREADS_PER_TEXT, torch.get_num_threads()))
    launch = partial(build_page(model, tokenizer, at_once).launch, share=service.share)
    launch(server_name=service.host, server_port=service.port, **looks(model))


class Page:
    """The page's actions: generate with one model, and stop the generation of a visitor.

    A text keeps the model only for a forward pass, so all that are being written go on in turns.
    """

    def __init__(self, model: TreeDiffForDiffusionLM, tokenizer: PreTrainedTokenizerBase, at_once: int = 1) -> None:
        """Write with a model and its tokenizer, of which `at_once` forward passes may run at the same time."""
        self.model, self.tokenizer = model, tokenizer
        self.longest = CHARACTERS_PER_POSITION * model.config.max_position_embeddings
        self.passes = threading.Semaphore(at_once)
        self.stops: dict[str | None, threading.Event] = {}

    def settings(
        self,
        node_ids: torch.Tensor | None,
        new_tokens: int | None,
        num_steps: float,
        top_p: float,
        unmasking: str,
        remasking_steps: float,
        seed: float | None,
        *temperature: float,
    ) -> dict[str, Any]:
        """Return arguments of `generate` from what the fields hold."""
        return {
            "input_ids": node_ids,
            "max_new_tokens": new_tokens,
            "num_steps": int(num_steps),
            "temperature": [float(value) for value in temperature],
            "top_p": float(top_p),
            "unmasking": unmasking,
            "remasking_steps": int(remasking_steps),
            "remasking_rate": self.model.generation_config.remasking_rate if unmasking == "random" else 0.0,
            "generator": torch.Generator(self.model.device).manual_seed(int(seed or 0)),
        }

    def drafts(self, visitor: str | None, recorder: DraftRecorder, settings: dict[str, Any]) -> Iterator[ShownDraft]:
        """Generate; give the drafts as they come, and keep them in the recorder."""
        stop = self.stops[visitor] = threading.Event()

        def run(callback: Callable[[ShownDraft], None]) -> None:
            def show(draft: ShownDraft) -> None:
                self.passes.release()
                try:
                    callback(draft)  # and wait until it was seen
                finally:
                    self.passes.acquire()

            recorder.show = show
            with self.passes:
                self.model.generate(**settings, callback=recorder)

        try:
            yield from iterate_newest(run, stop, SECONDS_PER_TEXT / settings["num_steps"])
        finally:
            self.stops.pop(visitor, None)

    def stop(self, request: gradio.Request) -> None:
        """End the visitor's text, if one is being written."""
        if request.session_hash in self.stops:
            self.stops[request.session_hash].set()

    def continue_text(self, request: gradio.Request, prompt: str, new_tokens: float, *fields: Any) -> Iterator[Answer]:
        """Write after a prompt, or from nothing."""
        yield from self.respond(request, {"prompt": prompt or None, "infill": None}, new_tokens, fields)

    def fill_in(self, request: gradio.Request, infill: str, new_tokens: float, *fields: Any) -> Iterator[Answer]:
        """Fill the gaps of a text."""
        yield from self.respond(request, {"prompt": None, "infill": infill}, None, fields)

    def respond(
        self,
        request: gradio.Request,
        text: dict[str, str | None],
        new_tokens: float | None,
        fields: tuple[Any, ...],
    ) -> Iterator[Answer]:
        """Generate for the page; give its text, its level slider, and the drafts kept for that slider."""
        recorder = DraftRecorder(self.model.tree, self.tokenizer)
        try:
            if (length := max(len(part or "") for part in text.values())) > self.longest:
                raise ValueError(f"The text has {length:,} characters; this page takes {self.longest:,} at most.")
            node_ids = starting_nodes(self.tokenizer, self.model.config.mask_token_id, **text)
            settings = self.settings(node_ids, None if new_tokens is None else int(new_tokens), *fields)
            for draft in self.drafts(request.session_hash, recorder, settings):
                yield draft_html(draft), gradio.update(visible=False), None
            yield gradio.skip(), gradio.update(visible=True, value=self.model.config.tree_depth), recorder
        except (ValueError, TypeError, RuntimeError) as error:
            yield f'<p class="draft-error" role="alert">{escape(str(error))}</p>', gradio.update(visible=False), None


def show_level(recorder: DraftRecorder | None, level: float) -> str:
    """Return the newest draft, shown no finer than a level."""
    return PLACEHOLDER if recorder is None else draft_html(recorder.draft(level=int(level)))


def build_page(model: TreeDiffForDiffusionLM, tokenizer: PreTrainedTokenizerBase, at_once: int = 1) -> gradio.Blocks:
    """Return the page, not yet served, for `at_once` forward passes at the same time."""
    page, depth = Page(model, tokenizer, at_once), model.config.tree_depth
    with gradio.Blocks(title="Coarse to fine", analytics_enabled=False, fill_width=True) as blocks:
        with gradio.Column(elem_classes="page"):
            gradio.Markdown("# Coarse to fine\nEvery position starts open, becomes a cluster of tokens, then a token.")
            with gradio.Row():
                with gradio.Column(scale=2, min_width=320):
                    with gradio.Tab("Continue"):
                        prompt = request_box("Prompt", "Empty: a text from nothing", "Generate", page.longest)
                    with gradio.Tab("Fill in"):
                        gaps = "Every _ becomes one token: We must ____ our ____."
                        infill = request_box("Text with gaps", gaps, "Fill", page.longest)
                with gradio.Column(scale=3, min_width=320):
                    text = gradio.HTML(PLACEHOLDER)
                    gradio.HTML(legend_html(depth))
                    level = gradio.Slider(0, depth, depth, step=1, label="Show no finer than level", visible=False)
            fields = setting_fields(model)
        recorder = gradio.State(None)
        for (box, start, stop), respond in ((prompt, page.continue_text), (infill, page.fill_in)):
            starts = [start.click, box.submit]
            shown = [text, level, recorder]
            gradio.on(starts, respond, [box, *fields], shown, show_progress="hidden", concurrency_limit=VISITORS)
            stop.click(page.stop, queue=False)
        level.input(show_level, [recorder, level], text, show_progress="hidden")
        blocks.unload(page.stop)
    return blocks


def request_box(
    label: str, placeholder: str, action: str, longest: int
) -> tuple[gradio.Textbox, gradio.Button, gradio.Button]:
    """Return a box for a text of at most `longest` characters, and the buttons that start and stop its use."""
    box = gradio.Textbox(label=label, placeholder=placeholder, lines=4, max_length=longest)
    with gradio.Row():
        return box, gradio.Button(action, variant="primary", scale=2), gradio.Button("Stop", min_width=80)


def setting_fields(model: TreeDiffForDiffusionLM) -> list[gradio.components.Component]:
    """Return the fields of the settings: the number of new tokens, and the others in the order of Page.settings.

    They start as the model's own generation config has them.
    """
    longest, depth, own = model.config.max_position_embeddings, model.config.tree_depth, model.generation_config
    warmth = own.temperature if isinstance(own.temperature, list) else [own.temperature] * depth
    slider = partial(gradio.Slider, min_width=230)
    with gradio.Accordion("Settings"):
        with gradio.Row():
            length = slider(1, longest, min(48, longest), step=1, label="New tokens")
            passes = slider(depth, max(512, own.num_steps), max(own.num_steps, depth), step=1, label="Steps")
            remasking_steps = slider(0, 64, own.remasking_steps, step=1, label="Remasking steps, of these")
        with gradio.Row():
            temperatures = [
                slider(0.05, 2, value, step=0.05, label=f"Temperature, {depth_name(number, depth)}")
                for number, value in enumerate(warmth, start=1)
            ]
            top_p = slider(0.05, 1, own.top_p or 1, step=0.05, label="Top-p")
        with gradio.Row():
            unmasking = gradio.Dropdown(list(UNMASKING), value=own.unmasking, label="Order of positions", min_width=230)
            seed = gradio.Number(0, precision=0, label="Seed", min_width=230)
    return [length, passes, top_p, unmasking, remasking_steps, seed, *temperatures]


def looks(model: TreeDiffForDiffusionLM) -> dict[str, Any]:
    """Return launch's arguments for the page's looks; fonts are the visitor's own."""
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": draft_style(model.config.tree_depth) + STYLE, "footer_links": []}
