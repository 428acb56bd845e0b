// The contrastive loss, distance matrices and functions of rows on the CPU: threads, and the choice of the instruction set.
// Loaded by bindings.py. CHUNK, STRIP, GEOMETRIES and SIGNATURES are those of _constants.py: setup.py defines them.
//
// A tile is cut into pieces of one size, whatever the number of threads, and what the pieces give is merged in their order:
// results are the same from run to run.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

enum Geometry { GEOMETRIES };

// A tile of products and what its logits are made of: exponent * distance(z), in base 2.
struct Tile {
    const float *z;
    long stride, rows, columns;
    float exponent;
    float *column_least, *column_sum;  // null where columns have no loss
};

// Of rows and of columns: a distance, and the gradient of the loss over the sum of powers relative to it; null for columns
// without loss.
struct Upstream {
    const float *row_origin, *row_grad, *column_origin, *column_grad;
    float slope;
    float *weights;
    long stride;
};

// The chord e = a - b of the directions of two rows, number by number: (2 (x - y) - r (a + b)) / (|x| + |y|), less what
// rounding left along a + b. ``of_x`` is 1 / |x|, ``r`` is |x| - |y|, ``of_sum`` 1 / (|x| + |y|).
struct Chord {
    double of_x, of_y, r, of_sum, leftover;
};

// A block of distances of all pairs, and scales of its rows. Positives are pairs of equal ids, or without ids those of row i and
// column i + diagonal; pairs of equal excluded ids are left out, and so are negatives below a limit, null for none, of
// the row or of the column that has the loss.
struct PairBlock {
    const float *values;
    long stride, rows, columns;
    const float *scale;
    long diagonal;
    const int64_t *row_ids, *column_ids, *excluded_rows, *excluded_columns;
    const float *row_limits, *column_limits;
};

// What slopes by logits are made of, for each row or column: see blocked/pairs.py. Null for columns without a loss.
struct Weights {
    const double *nearest, *nearest_negative;
    const float *positive, *constant, *negative, *constant_negative;
};

// A vector in polar coordinates, with p the rapidity: e^-p, e^-2p / 2, then e^-p times sinh p, cosh p and e^p - 1, and what slopes
// by c are made of: see cpu/angle_pairs.py.
struct PolarRow {
    float decay, half_square, sinh, cosh, lift, excess, of_curvature;
};

// Those numbers of some vectors, each in a row of its own.
struct PolarRows {
    const float *numbers;
    long stride;

    PolarRows from(long i) const { return {numbers + i, stride}; }

    PolarRow row(long i) const {
        const float *of = numbers + i;
        return {of[0], of[stride], of[2 * stride], of[3 * stride], of[4 * stride], of[5 * stride], of[6 * stride]};
    }
};

// Cosines of the directions of a block of queries and keys; where they are closer to 1 or -1 than the limit, they are left to others.
struct AngleTile {
    const float *cosine;
    long stride, rows, columns;
    PolarRows x, y;
    float limit;
};

// Gradients by angles, and where those by cosines and by rapidities of columns go.
struct AngleSlopes {
    const float *grad;
    long grad_stride;
    float *weights;
    long weights_stride;
    float *by_column;
};

struct Kernels {
    void (*minima)(const float *, long, long, long, float *);
    void (*sums[3])(const Tile &, long, long, float *, float *);
    void (*merge)(long, float, const float *, const float *, float *, float *);
    double (*weigh[3])(const Tile &, long, long, const Upstream &);
    void (*distances)(const float *, long, float, float *, float, float *);
    void (*distance_weights)(const float *, const float *, long, float, float *, float *, double *);
    double (*inner)(const float *, const float *, long);
    double (*scale)(const float *, long, float, float *);
    void (*compare)(const float *, const float *, long, double *);
    void (*chords)(const float *, const float *, long, const Chord &, double *);
    double (*ray_chord)(const float *, const float *, long, const Chord &);
    void (*combine)(const float *, const float *, long, const Chord &, const double *, const float *, const float *, float *);
    void (*across)(const float *, const float *, const float *, long, double, double *);
    void (*spread)(const float *, const float *, const float *, long, double, double, const double *, float *);
    void (*mix)(const float *, const float *, const float *, long, const double *, float *);
    void (*row_powers)(const PairBlock &, long, double *, long, bool);
    void (*column_powers)(const PairBlock &, long, long, double *, long, bool);
    void (*softmax_gradients)(const PairBlock &, long, const Weights &, const Weights &, float *, double *, long);
    void (*add_sigmoid)(const PairBlock &, long, double, double *);
    void (*sigmoid_gradients)(const PairBlock &, long, double, float, float *, double *, long);
    double (*angles)(const AngleTile &, long, long, float *, long);
    void (*angle_slopes)(const AngleTile &, long, long, const AngleSlopes &, float *, double *);
    void (*exp2)(const float *, float *, long);
    void (*log1p)(const float *, float *, long);
    void (*atan2)(const float *, const float *, float *, long);
};

#define INLINE static inline __attribute__((always_inline))

namespace baseline {
#include "tile.h"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "tile.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
namespace avx512 {
#include "tile.h"
}
#pragma GCC pop_options
static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
static const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
// In the order of INSTRUCTION_SETS, null where the processor has none.
static const Kernels *const sets[] = {&baseline::kernels, has_avx2 ? &avx2::kernels : nullptr,
                                      has_avx512 ? &avx512::kernels : nullptr};
#else
static const Kernels *const sets[] = {&baseline::kernels, nullptr, nullptr};
#endif
static int in_use = 0;
static Kernels kernels = baseline::kernels;

#include "operands.h"
#include "rows.h"
#include "maps.h"

// Two matrices of matching rows.
struct Rows {
    const float *x;
    long x_stride;
    const float *y;
    long y_stride, d;
    double unit;
    bool tangent;

    Polar polar(long i) const { return ::polar(x + i * x_stride, y + i * y_stride, d, unit, tangent); }

    double add(long i, const Polar &polar, const Slopes &slopes, double weight, float *dx, float *dy) const {
        const float *of_x = x + i * x_stride, *of_y = y + i * y_stride;
        double to_x[] = {weight * slopes.x[0], weight * slopes.x[1], 1}, to_y[] = {weight * slopes.y[0], weight * slopes.y[1], 1};
        kernels.combine(of_x, of_y, d, polar.chord, to_x, of_x, dx, dx);
        kernels.combine(of_x, of_y, d, polar.chord, to_y, of_y, dy, dy);
        return weight * slopes.c;
    }
};

#include "blocks.h"

static void map_rows(Map map, const float *x, long x_stride, const float *y, long y_stride, long rows, long d, double c,
                     double scale, float *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        map({x + i * x_stride, y ? y + i * y_stride : nullptr, nullptr, d, c, scale, out + i * d, nullptr, nullptr, nullptr});
}

// From grad, all (rows d) in one piece; scalars (rows 2) receives the gradients of the scale and the curvature.
static void slopes_of_rows(Map slopes, const float *x, long x_stride, const float *y, long y_stride, long rows, long d,
                           double c, double scale, const float *grad, float *dx, float *dy, double *scalars, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) {
        const float *of_y = y ? y + i * y_stride : nullptr;
        float *out_y = y ? dy + i * d : nullptr;
        slopes({x + i * x_stride, of_y, grad + i * d, d, c, scale, nullptr, dx + i * d, out_y, scalars + 2 * i});
    }
}

#include "terms.h"

extern "C" {

int hyperst_signatures() { return SIGNATURES; }

// Use the last instruction set up to a limit that the processor has, or with a limit of -1 what is in use; returns its number.
int hyperst_instruction_set(int limit) {
    if (limit >= 0) {
        for (in_use = limit; !sets[in_use];) in_use--;
        kernels = *sets[in_use];
    }
    return in_use;
}

void hyperst_minima(const float *z, long stride, long rows, long columns, float *smallest, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) kernels.minima(z + i * stride, stride, 1, columns, smallest + i);
}

// Add a tile to the (least, sum) of its rows and columns; for work see BlockSums.
void hyperst_sums(int geometry, const float *z, long stride, long rows, long columns, float exponent, float *row_least,
                  float *row_sum, float *column_least, float *column_sum, float *work, int threads) {
    BlockSums sums = {{z, stride, rows, columns, exponent, nullptr, nullptr}, work, column_least != nullptr};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long k = 0; k < blocks_of(rows, columns); k++) sums.add(geometry, k);
#pragma omp for schedule(static) nowait
        for (long i = 0; i < rows; i += STRIP)
            sums.merge_rows(i, piece_of(rows, i, STRIP), row_least + i, row_sum + i);
#pragma omp for schedule(static)
        for (long j = 0; j < (column_least ? columns : 0); j += STRIP)
            sums.merge_columns(j, piece_of(columns, j, STRIP), column_least + j, column_sum + j);
    }
}

// Turn a tile into dL/dz; work receives the sum of dL/dlogit * distance of each block.
void hyperst_weigh(int geometry, const float *z, long stride, long rows, long columns, float exponent, float slope,
                   const float *row_origin, const float *row_grad, const float *column_origin, const float *column_grad,
                   float *weights, long weights_stride, double *work, int threads) {
    Tile tile = {z, stride, rows, columns, exponent, nullptr, nullptr};
    Upstream upstream = {row_origin, row_grad, column_origin, column_grad, slope, weights, weights_stride};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long k = 0; k < blocks_of(rows, columns); k++) work[k] = weigh_block(geometry, tile, upstream, k);
}

// Of n entries in one piece, see tile.h.
void hyperst_distances(const float *z, long n, float factor, float *out, float inverse_factor, float *inverse,
                       int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n; i += 16 * CHUNK) {
        long some = n - i < 16 * CHUNK ? n - i : 16 * CHUNK;
        kernels.distances(z + i, some, factor, out + i, inverse_factor, inverse ? inverse + i : nullptr);
    }
}

// dL/dz of a block of distances (rows columns) from dL/dd; of each row the least distance, and the sum of dL/dd d.
void hyperst_weights(const float *distance, long stride, const float *grad, long grad_stride, long rows, long columns,
                     float unit, float *weights, float *least, double *along, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        kernels.distance_weights(distance + i * stride, grad + i * grad_stride, columns, unit, weights + i * columns,
                                 least + i, along + i);
}

#define BLOCK                                                                                                            \
    const float *values, long stride, long rows, long columns, const float *scale, long diagonal,                        \
        const int64_t *row_ids, const int64_t *column_ids, const int64_t *excluded_rows, const int64_t *excluded_columns,\
        const float *row_limits, const float *column_limits
#define OF_BLOCK                                                                                                         \
    values, stride, rows, columns, scale, diagonal, row_ids, column_ids, excluded_rows, excluded_columns, row_limits,    \
        column_limits
#define WEIGHTS(name)                                                                                                    \
    const double *name##_nearest, const double *name##_nearest_negative, const float *name##_positive,                   \
        const float *name##_constant, const float *name##_negative, const float *name##_constant_negative
#define OF_WEIGHTS(name)                                                                                                 \
    name##_nearest, name##_nearest_negative, name##_positive, name##_constant, name##_negative, name##_constant_negative

// Take a block into the sums of its rows and, unless null, of its columns: 6 each, or 8 where negatives are counted.
void hyperst_add_powers(BLOCK, double *row_sums, long row_stride, double *column_sums, long column_stride, int counted,
                        int threads) {
    PairBlock block = {OF_BLOCK};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) kernels.row_powers(block, i, row_sums, row_stride, counted);
    if (!column_sums) return;
    long width = CHUNK;  // of columns, of which each is summed for itself: fewer where there are more threads
    while (width > 32 && pieces(columns, width) < threads) width /= 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long first = 0; first < columns; first += width)
        kernels.column_powers(block, first, piece_of(columns, first, width), column_sums, column_stride, counted);
}

// Add the losses of a block to those of its rows.
void hyperst_add_sigmoid(BLOCK, double bias, double *losses, int threads) {
    PairBlock block = {OF_BLOCK};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) kernels.add_sigmoid(block, i, bias, losses);
}

// dL / d distance (r w); to sums (2 r) are added those of dL/dlogit times distance, and of dL/dlogit.
void hyperst_softmax_gradients(BLOCK, WEIGHTS(row), WEIGHTS(column), float *out, double *sums, long sums_stride, int threads) {
    PairBlock block = {OF_BLOCK};
    Weights of_rows = {OF_WEIGHTS(row)}, of_columns = {OF_WEIGHTS(column)};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        kernels.softmax_gradients(block, i, of_rows, of_columns, out + i * columns, sums + i, sums_stride);
}

void hyperst_sigmoid_gradients(BLOCK, double bias, const float *grad, float *out, double *sums, long sums_stride,
                               int threads) {
    PairBlock block = {OF_BLOCK};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        kernels.sigmoid_gradients(block, i, bias, grad[i], out + i * columns, sums + i, sums_stride);
}

#define COSINES                                                                                                          \
    const float *cosine, long stride, long rows, long columns, const float *x, long x_stride, const float *y, long y_stride, float limit

// Angles of a tile, and for each of its blocks how many pairs are left to others.
void hyperst_angles(COSINES, float *out, long out_stride, double *left_out, int threads) {
    AngleTile tile = {cosine, stride, rows, columns, {x, x_stride}, {y, y_stride}, limit};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long k = 0; k < blocks_of(rows, columns); k++) {
        Block block(rows, columns, k);
        left_out[k] = kernels.angles(strip_of(tile, block), block.first, block.width, out + block.top * out_stride, out_stride);
    }
}

// Gradients of a tile from those of its angles. by_row (chunks rows) is of each chunk of columns, by_column (strips columns) of each
// strip of rows, sums (blocks 2) of each block.
void hyperst_angle_slopes(COSINES, const float *grad, long grad_stride, float *weights, long weights_stride, float *by_row,
                          float *by_column, double *sums, int threads) {
    AngleTile tile = {cosine, stride, rows, columns, {x, x_stride}, {y, y_stride}, limit};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long k = 0; k < blocks_of(rows, columns); k++) {
        Block block(rows, columns, k);
        AngleSlopes slopes = {grad + block.top * grad_stride, grad_stride, weights + block.top * weights_stride, weights_stride,
                              by_column + block.top / STRIP * columns};
        float *of_rows = by_row + block.first / CHUNK * rows + block.top;
        kernels.angle_slopes(strip_of(tile, block), block.first, block.width, slopes, of_rows, sums + 2 * k);
    }
}

// Rows of an operand of the product that gives H: out (rows d + 2), from features (rows d).
void hyperst_operand(const float *x, long stride, long rows, long d, double unit, int tangent, int left, float *out,
                     long out_stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) operand(x + i * stride, d, unit, tangent, left, out + i * out_stride);
}

// Gradient of the features from that of the operand: added to out (rows d).
void hyperst_operand_slopes(const float *x, long stride, long rows, long d, double unit, int tangent, int left,
                            const float *grad, long grad_stride, float *out, long out_stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        add_operand_slopes(x + i * stride, d, unit, tangent, left, grad + i * grad_stride, out + i * out_stride);
}

// Of matching rows. Gradients are added to dx and dy, times weights; dc receives each row's derivative by the curvature.
void hyperst_distance(const float *x, long x_stride, const float *y, long y_stride, long rows, long d, double unit,
                      int tangent, float *out, int threads) {
    Rows pairs = {x, x_stride, y, y_stride, d, unit, (bool)tangent};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) out[i] = (float)distance(pairs.polar(i), unit);
}

void hyperst_distance_slopes(const float *x, long x_stride, const float *y, long y_stride, long rows, long d, double unit,
                             int tangent, const float *weights, float *dx, long dx_stride, float *dy, long dy_stride,
                             double *dc, int threads) {
    Rows pairs = {x, x_stride, y, y_stride, d, unit, (bool)tangent};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) {
        Polar polar = pairs.polar(i);
        Slopes slopes = slopes_of_distance(polar, unit, tangent);
        dc[i] = pairs.add(i, polar, slopes, weights[i], dx + i * dx_stride, dy + i * dy_stride);
    }
}

// |x|^2 of the longest row.
void hyperst_largest_square(const float *x, long stride, long rows, long d, double *out, int threads) {
    double largest = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : largest)
    for (long i = 0; i < rows; i++) largest = larger(kernels.inner(x + i * stride, x + i * stride, d), largest);
    *out = largest;
}

// Maps of rows, by name. y is null in maps of one row.
#define MAP(name)                                                                                                        \
    void hyperst_##name(const float *x, long x_stride, const float *y, long y_stride, long rows, long d, double c,       \
                        double scale, float *out, int threads) {                                                         \
        map_rows(name, x, x_stride, y, y_stride, rows, d, c, scale, out, threads);                                       \
    }                                                                                                                    \
    void hyperst_##name##_slopes(const float *x, long x_stride, const float *y, long y_stride, long rows, long d,        \
                                 double c, double scale, const float *grad, float *dx, float *dy, double *scalars,       \
                                 int threads) {                                                                          \
        slopes_of_rows(name##_slopes, x, x_stride, y, y_stride, rows, d, c, scale, grad, dx, dy, scalars, threads);      \
    }
MAP(exp_map0)
MAP(log_map0)
MAP(exp_map)
MAP(log_map)

// Ask for large pages: new memory is then cleared in a few pieces rather than 4096 bytes at a time.
void hyperst_large(char *start, long bytes, int) {
#ifdef MADV_HUGEPAGE
    const unsigned long page = 1 << 21;
    char *first = (char *)(((unsigned long)start + page - 1) / page * page);
    char *last = (char *)((unsigned long)(start + bytes) / page * page);
    if (first < last) madvise(first, last - first, MADV_HUGEPAGE);
#endif
}

// For tests.
void hyperst_exp2(const float *x, float *out, long n) { kernels.exp2(x, out, n); }
void hyperst_log1p(const float *x, float *out, long n) { kernels.log1p(x, out, n); }
void hyperst_atan2(const float *y, const float *x, float *out, long n) { kernels.atan2(y, x, out, n); }
}
