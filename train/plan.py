"""What a dictionary costs before it is trained. Imports nothing heavy: the Snakefile plans with it."""

from dataclasses import dataclass

from train.config import DictionarySpec, training_rows
from train.pools import Pools

OWN_PARAMETERS = {"jumprelu": 1, "gated": 2}
"""What σ itself has of every latent."""
STATE_BYTES = 16
"""A weight, its gradient and Adam's two moments."""
CHECKPOINT_BYTES = 12
MOVED_BYTES = 52
"""A weight's bytes that a step reads or writes: Adam seven times, the gradient once, the unit norm of the decoder, and
the encoder's copy in bfloat16; 4 bytes each."""


@dataclass(frozen=True)
class Reading:
    """The store that a dictionary reads, and the sites it reads and writes there."""

    rows: int
    chunk_rows: int
    store_row: int
    """Bytes of a row at all sites."""
    row: int
    """Bytes of a row at those that are read or written."""
    read: int
    written: int
    """Widths, of all sites side by side."""


@dataclass(frozen=True)
class DictionaryPlan:
    latents: int
    parameters: int
    steps: int
    flops: float
    moved: float
    """Bytes that go through the device's memory."""
    from_disk: float
    rows_bytes: int
    """Of the store's rows that are in memory."""
    device_bytes: int
    """Weights, gradients, moments and what a batch needs."""

    @property
    def weights_bytes(self) -> int:
        return 4 * self.parameters

    @property
    def checkpoint_bytes(self) -> int:
        return CHECKPOINT_BYTES * self.parameters


def parameters_of(spec: DictionarySpec, read: int, written: int) -> int:
    a_latent = read + written + 1 + OWN_PARAMETERS.get(spec.method, 0)
    return spec.latents * a_latent + written + (read * written if spec.skip else 0)


def plan_dictionary(spec: DictionarySpec, reading: Reading) -> DictionaryPlan:
    """On one process. A step is one dense product, of a batch with the encoder, and sparse ones: two forward and three
    backward, at the active places alone. What auxk, resampling, anchors and Matryoshka's prefixes add is left out."""
    read, written = reading.read, reading.written
    parameters, steps = parameters_of(spec, read, written), max(1, spec.tokens // spec.batch)
    dense = 2 * spec.batch * read * spec.latents
    sparse = 2 * spec.batch * spec.l0 * (2 * read + 3 * written)
    preactivations = spec.batch * spec.latents
    # An operand of a sparse product is gathered for each of its multiplications.
    moved = MOVED_BYTES * parameters + 8 * preactivations + 2 * sparse
    rows = training_rows(reading.rows, spec.holdout)
    pools = Pools(rows, reading.chunk_rows, reading.store_row, reading.row, spec.batch)
    return DictionaryPlan(
        spec.latents,
        parameters,
        steps,
        steps * (dense + sparse),
        steps * moved,
        steps * spec.batch * reading.row,
        pools.bytes(),
        # The first batch's pre-activations are in float32; the encoder is copied in bfloat16; some copies of the batch.
        STATE_BYTES * parameters + 4 * preactivations + 2 * spec.latents * read + 16 * spec.batch * (read + written),
    )
