"""Token embeddings before clustering: checked, then reduced to normalised principal components.

Shape legend: V tokens, E dimensions of an embedding.
"""

import numpy as np
import torch


def checked_embeddings(embeddings: np.ndarray | torch.Tensor) -> np.ndarray:
    """Return embeddings (V, E) as float64 on the host; raise ValueError unless they are a matrix of finite numbers."""
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.detach().to("cpu", torch.float64).numpy()
    embedding_VE = np.asarray(embeddings, dtype=np.float64)
    if embedding_VE.ndim != 2 or 0 in embedding_VE.shape:
        raise ValueError(f"embeddings must have shape (tokens, dimensions), got {embedding_VE.shape}.")
    broken = np.flatnonzero(~np.isfinite(embedding_VE).all(axis=1))
    if len(broken):
        shown = ", ".join(map(str, broken[:5].tolist())) + (", ..." if len(broken) > 5 else "")
        raise ValueError(f"{len(broken)} rows of the embeddings hold NaN or infinity: tokens {shown}.")
    return embedding_VE


def reduce_embeddings(embeddings: np.ndarray | torch.Tensor, dimensions: int = 128) -> np.ndarray:
    """Keep the principal components of embeddings and scale every row to length one, so that distances are angles.

    Checkpoints have hundreds or thousands of dimensions, one mean far from zero, and rows longer for rare tokens or
    shorter, by training: none of it says which tokens are alike. Rows of zeros, tokens without an embedding, stay.

    Args:
        embeddings: (V, E) finite numbers.
        dimensions: the most to keep.

    Returns:
        (V, min(E, dimensions)) float64.

    Raises:
        ValueError: not a matrix of finite numbers.

    """
    embedding_VE = checked_embeddings(embeddings)
    embedded_V1 = embedding_VE.any(axis=1, keepdims=True)
    centred_VE = embedding_VE - embedded_V1 * (embedding_VE.sum(axis=0) / max(1, embedded_V1.sum()))
    if centred_VE.shape[1] > dimensions:
        _, axes_EE = np.linalg.eigh(centred_VE.T @ centred_VE)
        centred_VE = centred_VE @ axes_EE[:, ::-1][:, :dimensions]
    length_V1 = np.linalg.norm(centred_VE, axis=1, keepdims=True)
    return np.divide(centred_VE, length_V1, out=np.zeros_like(centred_VE), where=length_V1 > 0)
