"""A page on which a saved model writes: texts become concrete level by level, in the browser (extra `demo`)."""

from dataclasses import dataclass

from .fields import operand, option, trust_option

EXAMPLES = """
  treediff app my_model            # then open http://127.0.0.1:7860
"""


@dataclass(frozen=True)
class Service:
    """The model and the address of its page."""

    model: str = operand("folder or Hub repository of a trained model")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(7860, "port to listen on")
    share: bool = option(False, "also make a public link through gradio's servers")
    trust_remote_code: bool = trust_option()


OPTIONS = (Service,)
