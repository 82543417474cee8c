"""Tree-structured diffusion language models."""
