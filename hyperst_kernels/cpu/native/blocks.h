// Blocks of a tile: STRIP rows in a chunk of columns, each a task of a thread. They are the same for any number of threads, and
// what they give is merged in their order.

static long pieces(long length, long step) { return (length + step - 1) / step; }

// What is left of a length from ``first`` on, ``step`` at most.
static long piece_of(long length, long first, long step) { return length - first < step ? length - first : step; }

static long blocks_of(long rows, long columns) { return pieces(rows, STRIP) * pieces(columns, CHUNK); }

// Rows and columns of a block by its number.
struct Block {
    long top, height, first, width;

    Block(long rows, long columns, long number) {
        long chunks = pieces(columns, CHUNK);
        top = number / chunks * STRIP, height = piece_of(rows, top, STRIP);
        first = number % chunks * CHUNK, width = piece_of(columns, first, CHUNK);
    }
};

// The rows of a block, with all columns.
static Tile strip_of(Tile tile, const Block &block) {
    tile.z += block.top * tile.stride, tile.rows = block.height;
    return tile;
}

static AngleTile strip_of(AngleTile tile, const Block &block) {
    tile.cosine += block.top * tile.stride, tile.rows = block.height, tile.x = tile.x.from(block.top);
    return tile;
}

// Sums of the blocks of a tile, the column_least and column_sum of which are not used: ``work`` holds (least, sum) of the rows of each
// chunk, then those of the columns of each strip of rows where columns have a loss.
struct BlockSums {
    Tile tile;
    float *work;
    bool symmetric;

    static long numbers(long rows, long columns, bool symmetric) {
        return 2 * (pieces(columns, CHUNK) * rows + symmetric * pieces(rows, STRIP) * columns);
    }

    float *of_rows(long chunk) const { return work + 2 * chunk * tile.rows; }

    float *of_columns(long strip) const { return of_rows(pieces(tile.columns, CHUNK)) + 2 * strip * tile.columns; }

    void add(int geometry, long number) const {
        Block block(tile.rows, tile.columns, number);
        Tile strip = strip_of(tile, block);
        if (symmetric) {
            strip.column_least = of_columns(block.top / STRIP), strip.column_sum = strip.column_least + tile.columns;
            std::fill_n(strip.column_least + block.first, block.width, std::numeric_limits<float>::infinity());
            std::fill_n(strip.column_sum + block.first, block.width, 0.f);
        }
        float *least = of_rows(block.first / CHUNK) + block.top;
        kernels.sums[geometry](strip, block.first, block.width, least, least + tile.rows);
    }

    // Take the sums of ``count`` rows, or columns, from ``first`` on into those at ``least`` and ``sum``.
    void merge_rows(long first, long count, float *least, float *sum) const {
        for (long k = 0; k < pieces(tile.columns, CHUNK); k++)
            kernels.merge(count, tile.exponent, of_rows(k) + first, of_rows(k) + tile.rows + first, least, sum);
    }

    void merge_columns(long first, long count, float *least, float *sum) const {
        for (long s = 0; s < pieces(tile.rows, STRIP); s++)
            kernels.merge(count, tile.exponent, of_columns(s) + first, of_columns(s) + tile.columns + first, least, sum);
    }
};

// Weights of a block of a tile; returns the sum of dL/dlogit * distance.
static double weigh_block(int geometry, const Tile &tile, const Upstream &upstream, long number) {
    Block block(tile.rows, tile.columns, number);
    Upstream up = upstream;
    up.row_origin += block.top, up.row_grad += block.top, up.weights += block.top * up.stride;
    return kernels.weigh[geometry](strip_of(tile, block), block.first, block.width, up);
}
