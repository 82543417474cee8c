"""Where a text is written: given nodes and new positions side by side, without the padding of a batch.

Shape legend: B sequences, P given positions, T positions on the canvas, S positions of the result.
"""

from dataclasses import dataclass

import torch


@dataclass
class Canvas:
    """Texts that end together: each text's given nodes, then its new positions; padding stands before them.

    So the distances between positions, all that the network sees of their places, are those of the text alone.

    Attributes:
        node_ids: (B, T).
        real: (B, T) bool, False at padding.
        result: (B, S) the given layout, new positions at its end.
        place: (B, T) the column of the result that each position belongs to.
        num_new: positions appended.

    """

    node_ids: torch.Tensor
    real: torch.Tensor
    result: torch.Tensor
    place: torch.Tensor
    num_new: int

    @staticmethod
    def lay_out(input_ids: torch.Tensor, attention_mask: torch.Tensor, num_new: int, open_id: int) -> "Canvas":
        """Append num_new open positions to (B, P) nodes, whose mask (B, P) is 0 at padding on either side."""
        given = (attention_mask != 0).long()
        new = given.new_ones(len(given), num_new)
        result = torch.cat([input_ids, new * open_id], dim=1)
        real = torch.cat([given, new], dim=1)
        place = real.argsort(dim=1, stable=True)  # padding first
        place = place[:, result.shape[1] - int(real.sum(dim=1).max()) :]
        return Canvas(result.gather(1, place), real.gather(1, place).bool(), result, place, num_new)

    def restore(self, canvas_values: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) of the canvas, put over (B, S, ...) in the layout of the result; padding keeps the latter."""
        shape = (*self.place.shape, *[1] * (canvas_values.ndim - 2))
        place = self.place.view(shape).expand_as(canvas_values)
        values = torch.where(self.real.view(shape), canvas_values, elsewhere.gather(1, place))
        return elsewhere.scatter(1, place, values)

    def blocks(self, block_length: int | None, limit: int, open_BT: torch.Tensor) -> list[slice]:
        """Return the columns of the canvas that are seen while each block, the end of its columns, is filled.

        Args:
            block_length: new positions in a block; None for all at once.
            limit: positions that the model sees.
            open_BT: (B, T) bool, what there is to fill.

        Raises:
            ValueError: a text that the model cannot see whole, written without blocks; a block longer than it sees; an
                open position that no block sees.

        """
        length = self.node_ids.shape[1]
        if block_length is None:
            if length > limit:
                hint = ", or write it in blocks (block_length)" if self.num_new else ""
                raise ValueError(
                    f"{length} positions are more than the model's {limit} (max_position_embeddings): make the text "
                    f"shorter{hint}."
                )
            return [slice(0, length)]
        if block_length > limit:
            raise ValueError(f"block_length={block_length} is more than the model's {limit} positions.")
        ends = [*range(length - self.num_new + block_length, length, block_length), length]
        seen = [slice(max(0, end - limit), end) for end in ends]
        if block_length == limit and length > limit:
            raise ValueError(
                f"block_length={block_length} leaves the model's {limit} positions no room for what stands before a "
                "block: choose a smaller one."
            )
        if open_BT[:, : seen[0].start].any():
            raise ValueError(
                f"There is an open position further than the model's {limit} positions before the end of the first "
                "block: fill it before, or make the text shorter."
            )
        return seen
