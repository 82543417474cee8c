"""A page on which a saved model writes: texts become concrete level by level, in the browser.

    python examples/app.py MODEL            # then open http://127.0.0.1:7860
"""

import argparse
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html import escape
from typing import Any

import torch
from generate import starting_nodes
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_treediff import TreeDiffForDiffusionLM
from modeling_treediff.viewing import Draft, DraftRecorder, draft_html, draft_style, iterate_newest, legend_html

try:
    import gradio
except ImportError as error:
    raise SystemExit("app.py needs gradio: pip install 'modeling-treediff[demo]'.") from error

UNMASKING = ("random", "first_hitting", "confidence", "margin", "entropy")
SECONDS_PER_DRAFT = 0.05  # at least: more would flicker
PLACEHOLDER = "<div class='draft'><p class='draft-caption'>The text appears here.</p></div>"
STYLE = """
.page { max-width: 1180px; margin: 0 auto; }
.draft, .draft-legend { color-scheme: light; }
.dark .draft, .dark .draft-legend { color-scheme: dark; }
.draft { padding: 16px 18px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.draft-error { padding: 12px 16px; border: 1px solid #c4122f; border-radius: 8px; }
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub repository of a trained model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(default %(default)s)")
    parser.add_argument("--share", action="store_true", help="also make a public link through gradio's servers")
    return parser.parse_args()


def main() -> None:
    """Load the model and serve the page."""
    options = parse_arguments()
    model = TreeDiffForDiffusionLM.from_pretrained(options.model)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    launch = partial(build_page(model, tokenizer).launch, share=options.share)
    launch(server_name=options.host, server_port=options.port, **looks(model))


class Writer:
    """Generates for the page: one text at a time, and knows how to stop the text of each visitor."""

    def __init__(self, model: TreeDiffForDiffusionLM, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write with a model and its tokenizer."""
        self.model, self.tokenizer = model, tokenizer
        self.stops: dict[str | None, threading.Event] = {}

    def write(self, visitor: str | None, recorder: DraftRecorder, settings: dict[str, Any]) -> Iterator[Draft]:
        """Generate with settings for `generate`; give the drafts as they come, and keep them in the recorder."""
        stop = self.stops[visitor] = threading.Event()

        def run(callback: Any) -> None:  # noqa: ANN401
            from modeling_treediff.viewing.emulation import generate_with_callback

            recorder.show = callback
            generate_with_callback(self.model, recorder, **settings)

        try:
            yield from iterate_newest(run, stop, SECONDS_PER_DRAFT)
        finally:
            self.stops.pop(visitor, None)

    def stop(self, visitor: str | None) -> None:
        """End the text of a visitor, if one is being written."""
        if visitor in self.stops:
            self.stops[visitor].set()

    def settings(
        self,
        prompt: str | None,
        infill: str | None,
        length: float,
        num_steps: float,
        top_p: float,
        unmasking: str,
        remasking_steps: float,
        seed: float,
        *temperature: float,
    ) -> dict[str, Any]:
        """Return arguments of `generate` from what the page's fields hold.

        Raises:
            ValueError: a text to fill in without gaps.

        """
        node_ids = starting_nodes(self.tokenizer, self.model.config.mask_token_id, prompt or None, infill)
        return {
            "input_ids": node_ids,
            "max_new_tokens": int(length) if infill is None else None,
            "num_steps": int(num_steps),
            "temperature": [float(value) for value in temperature],
            "top_p": float(top_p),
            "unmasking": unmasking,
            "remasking_steps": int(remasking_steps),
            "generator": torch.Generator(self.model.device).manual_seed(int(seed)),
        }


def build_page(model: TreeDiffForDiffusionLM, tokenizer: PreTrainedTokenizerBase) -> gradio.Blocks:
    """Return the page, not yet served."""
    writer, depth = Writer(model, tokenizer), model.config.tree_depth
    with gradio.Blocks(title="Coarse to fine", analytics_enabled=False, fill_width=True) as page:
        with gradio.Column(elem_classes="page"):
            gradio.Markdown("# Coarse to fine\nEvery position starts open, becomes a cluster of tokens, then a token.")
            with gradio.Row():
                with gradio.Column(scale=2, min_width=300):
                    with gradio.Tab("Continue"):
                        prompt = gradio.Textbox(label="Prompt", placeholder="Empty: a text from nothing", lines=3)
                        continue_ = gradio.Button("Generate", variant="primary")
                    with gradio.Tab("Fill in"):
                        infill = gradio.Textbox(label="Text with gaps: every _ becomes one token", lines=3)
                        fill = gradio.Button("Fill in", variant="primary")
                    stop = gradio.Button("Stop")
                    fields = setting_fields(model)
                with gradio.Column(scale=3, min_width=300):
                    gradio.HTML(legend_html(depth))
                    text = gradio.HTML(PLACEHOLDER)
                    level = gradio.Slider(
                        0, depth, depth, step=1, label="Show no finer than level", interactive=True, visible=False
                    )
        recorder = gradio.State(None)
        for button, box, name in ((continue_, prompt, "prompt"), (fill, infill, "infill")):
            gradio.on(
                [button.click, box.submit],
                partial(respond, writer, name),
                [box, *fields],
                [text, level, recorder],
                show_progress="hidden",
            )
        stop.click(lambda request: writer.stop(request.session_hash), queue=False)
        level.input(show_level, [recorder, level], text, show_progress="hidden")
        page.unload(lambda request: writer.stop(request.session_hash))
    return page


def setting_fields(model: TreeDiffForDiffusionLM) -> list[gradio.components.Component]:
    """Return the fields below the boxes, in the order of Writer.settings."""
    longest, depth = model.config.max_position_embeddings, model.config.tree_depth
    fields = [
        gradio.Slider(1, longest, min(48, longest), step=1, label="New tokens"),
        gradio.Slider(depth, 512, max(64, depth), step=1, label="Forward passes"),
        gradio.Slider(0.05, 1, 1, step=0.05, label="Top-p"),
        gradio.Dropdown(list(UNMASKING), value="random", label="Order of positions"),
        gradio.Slider(0, 64, 0, step=1, label="Passes that revise"),
        gradio.Number(0, precision=0, label="Seed"),
    ]
    return fields + [
        gradio.Slider(0.05, 2, 1, step=0.05, label=f"Temperature, level {number}") for number in range(1, depth + 1)
    ]


def respond(writer: Writer, name: str, text: str, *fields: Any, request: gradio.Request) -> Iterator[tuple]:  # noqa: ANN401
    """Generate for the page; give its text, its level slider, and the drafts kept for that slider."""
    recorder = DraftRecorder(writer.model.tree, writer.tokenizer)
    depth = writer.model.config.tree_depth
    try:
        settings = writer.settings(text if name == "prompt" else None, text if name == "infill" else None, *fields)
        for draft in writer.write(request.session_hash, recorder, settings):
            yield draft_html(draft), gradio.update(visible=False), None
        yield gradio.skip(), gradio.update(visible=True, value=depth), recorder
    except (ValueError, RuntimeError) as error:
        yield f'<p class="draft-error" role="alert">{escape(str(error))}</p>', gradio.update(visible=False), None


def show_level(recorder: DraftRecorder | None, level: float) -> str:
    """Return the newest draft, shown no finer than a level."""
    return PLACEHOLDER if recorder is None else draft_html(recorder.draft(level=int(level)))


def looks(model: TreeDiffForDiffusionLM) -> dict[str, Any]:
    """Return launch's arguments for the page's looks; fonts are the visitor's own."""
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": draft_style(model.config.tree_depth) + STYLE, "footer_links": []}


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"app.py: {error}")
