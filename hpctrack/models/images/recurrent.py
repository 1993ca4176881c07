"""An LSTM with one bias a gate, as Keras counts its weights.

torch's own has two that are added. Without biases, on an input with a constant column, it has one and stays a single
call of cuDNN: 4 H (I + 1) + 4 H H weights.

Legend: B sequences, L steps, I inputs, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpctrack.numerics import at_least_fp32, without_autocast


class OneBiasLSTM(nn.Module):
    """[B, L, I] -> [B, L, H], or [B, L, 2 H] if `bidirectional`; in fp32 at least.

    It begins as Keras' does: forget biases 1, others 0, inputs after Glorot and Bengio, recurrent weights orthogonal.
    """

    def __init__(self, inputs: int, width: int, bidirectional: bool = False) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs + 1, width, bias=False, batch_first=True, bidirectional=bidirectional)
        for name, weight in self.lstm.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(weight)
                with torch.no_grad():
                    weight[:, -1] = 0.0
                    weight[width : 2 * width, -1] = 1.0
            else:
                nn.init.orthogonal_(weight)

    def forward(self, x_BLI: Tensor) -> Tensor:
        """Hidden states at every step."""
        with without_autocast(x_BLI):
            x_BLI = at_least_fp32(x_BLI)
            one = x_BLI.new_ones((*x_BLI.shape[:2], 1))
            return self.lstm(torch.cat([x_BLI, one], dim=2))[0]
