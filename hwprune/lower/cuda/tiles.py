"""The tile of a product that a block makes: how many rows and columns, by how many warps.

In: the sizes of a product. Out: the `Tile` by which its blocks take the fewest turns.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprune.lower.cuda.context import Context

WARP = 32
CHUNK_BYTES = 16
PAD = 4  # floats after every row of the staged result: warps meet fewer banks


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a block's product, its warps, chunks of 16 bytes a step, stages."""

    rows: int
    cols: int
    warps: tuple[int, int]
    chunks: int = 8
    stages: int = 3

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return WARP * self.warps[0] * self.warps[1]

    @property
    def fragments(self) -> tuple[int, int]:
        """16-row and 8-column fragments of a warp."""
        return self.rows // (16 * self.warps[0]), self.cols // (8 * self.warps[1])

    @property
    def accumulators(self) -> int:
        """float32 registers of a thread that hold the result."""
        mt, nt = self.fragments
        return 4 * mt * nt

    @property
    def rows_of_thread(self) -> int:
        """Rows of the left factor of which a thread brings chunks."""
        return -(-self.rows * self.chunks // self.threads)

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one step's operands."""
        return (self.rows + self.cols) * self.chunks * CHUNK_BYTES

    @property
    def result_stride(self) -> int:
        """Floats of a row of the staged result."""
        return self.cols + PAD

    @property
    def shared_bytes(self) -> int:
        """Shared memory of the block: the pipeline, and after it the result."""
        return max(self.stages * self.stage_bytes, 4 * self.rows * self.result_stride)

    @property
    def text(self) -> str:
        """For people."""
        return f"{self.rows}x{self.cols}, {self.threads // WARP} warps, {self.stages} stages"


# A tile and the share of the peak that it can reach: of a step's time, products against the loads
# of fragments from shared memory (a fragment of 16 x 16 bytes x 2 feeds its whole row of products).
TENSOR_TILES = (
    (Tile(128, 128, (2, 4)), 1.0),
    (Tile(128, 64, (2, 2)), 0.9),
    (Tile(64, 128, (2, 2)), 0.9),
    (Tile(64, 64, (2, 2)), 0.75),
    (Tile(128, 32, (4, 1)), 0.65),
    (Tile(64, 32, (2, 2)), 0.5),
    (Tile(32, 64, (2, 2)), 0.5),
    (Tile(32, 32, (2, 1)), 0.4),
)
VECTOR_TILES = (
    (Tile(128, 64, (2, 2), 4), 1.0),
    (Tile(128, 32, (4, 1), 4), 0.85),
    (Tile(64, 64, (2, 2), 4), 0.85),
    (Tile(64, 32, (2, 1), 4), 0.8),
    (Tile(32, 32, (2, 1), 4), 0.5),
)


def choose(
    rows: int, cols: int, depth_chunks: int, groups: int, tensor: bool, context: Context,
    *, gathered: bool = False,
) -> Tile:  # fmt: skip
    """The tile of a product of `rows` x `cols` in each of so many groups, `depth_chunks` deep.

    Steps are short where the left factor is `gathered` element by element, through registers.
    """

    def cost(entry: tuple[Tile, float]) -> float:
        tile, share = entry
        blocks = -(-rows // tile.rows) * -(-cols // tile.cols) * groups
        return -(-blocks // context.sms) * tile.rows * tile.cols / share

    chosen = min(TENSOR_TILES if tensor else VECTOR_TILES, key=cost)[0]
    chunks = 4 if depth_chunks <= 4 or gathered else chosen.chunks
    steps = -(-depth_chunks // chunks)
    stages = min(chosen.stages, max(2, steps))
    tile = Tile(chosen.rows, chosen.cols, chosen.warps, chunks, stages)
    while tile.shared_bytes > context.shared_bytes and tile.stages > 2:
        tile = Tile(tile.rows, tile.cols, tile.warps, tile.chunks, tile.stages - 1)
    if tile.shared_bytes > context.shared_bytes:
        tile = Tile(64, 32, (2, 2) if tensor else (2, 1), 4, 2)
    return tile
