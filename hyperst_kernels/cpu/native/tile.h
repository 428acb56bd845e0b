// What to make of a tile of products z, in one sweep while it is in cache. See docs/contrastive.md for the formulas.
//
// No include guard: library.cpp includes this file once per instruction set, each time in a namespace of its own.
// z = +inf marks a key that is no negative of its row: its logit is -inf and its weight 0. NaN stays NaN.

constexpr float INF = __builtin_inff();
constexpr float LN2 = 0.693147180559945309f;
constexpr unsigned ONE = 127u << 23, EXPONENT = 0xff800000;  // the bits of 1, and those of a sign and exponent
constexpr long GROUP = 16;  // rows whose distances wait in the first-level cache until the smallest is known

INLINE unsigned bits_of(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

INLINE float float_of(unsigned bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

// 2^x for -inf <= x <= 127; 0 below the normal numbers. 2^x = 2^n 2^f with |f| <= 1/2, and of the polynomials of degree 6
// that are 1 at 0 the one with the least relative error of 2^f there: 5e-9.
INLINE float exp2(float x) {
    x = x < -127 ? -127 : x > 127 ? 127 : x;
    const float to_integer = 12582912;  // 1.5 * 2^23: adding it rounds to an integer, which the lowest bits then hold
    float shifted = x + to_integer;
    float f = x - (shifted - to_integer);
    float p = 1.51867459e-4f;
    p = p * f + 1.34071189e-3f;
    p = p * f + 9.6190175e-3f;
    p = p * f + 5.55030631e-2f;
    p = p * f + 0.240226434f;
    p = p * f + 0.69314722f;
    p = p * f + 1;
    return p * float_of((bits_of(shifted) << 23) + ONE);
}

// log(1 + t) for t >= 0, accurate for the smallest t: 1 + t = 2^e (1 + f) with 1 + f in [sqrt 1/2, sqrt 2), and
// log(1 + f) = 2 atanh(f / (2 + f)). The rounding of 1 + t is given back to f.
INLINE float log1p(float t) {
    const unsigned root_half = 0x3f3504f3;
    float u = 1 + t;
    unsigned e = (bits_of(u) - root_half) & EXPONENT;  // times 2^23
    float rounding = t - (u - 1);
    float f = (float_of(bits_of(u) - e) - 1) + rounding * float_of(ONE - e);
    float s = f / (2 + f);
    float s2 = s * s;
    float p = 2.f / 9;
    p = p * s2 + 2.f / 7;
    p = p * s2 + 2.f / 5;
    p = p * s2 + 2.f / 3;
    p = p * s2 + 2;
    return p * s + (int)e * (LN2 / (1 << 23));
}

// d = f(z) up to a constant factor, and df/dz up to another.
template <Geometry G> INLINE float distance(float z) {
    if (G == LORENTZ) return log1p(__builtin_sqrtf(z) + z / (1 + __builtin_sqrtf(1 + z)));
    return G == EUCLIDEAN ? __builtin_sqrtf(z) : z;
}

template <Geometry G> INLINE float slope(float z) {
    if (G == LORENTZ) return 1 / (__builtin_sqrtf(z) * __builtin_sqrtf(1 + z));
    return G == EUCLIDEAN ? 1 / __builtin_sqrtf(z) : 1;
}

INLINE float smaller(float a, float b) { return a < b ? a : b; }

// What distances are compared with: their minimum, or 0 where there are none, which must not be subtracted from itself.
INLINE float origin(float least) { return least == INF ? 0 : least; }

void minima(const float *z, long stride, long rows, long width, float *smallest) {
    for (long i = 0; i < rows; i++) {
        float least = INF;
#pragma omp simd reduction(min : least)
        for (long j = 0; j < width; j++) least = z[i * stride + j] < least ? z[i * stride + j] : least;
        smallest[i] = least;
    }
}

// (least, sum) over the columns of this chunk for every row, and over the rows so far for every column: the smallest
// distance, and the sum of 2^(exponent (distance - least)). Differences of distances keep their digits however large the
// exponent is; those of logits, rounded, would not.
template <Geometry G> void sums(const Tile &tile, long first, long width, float *row_least, float *row_sum) {
    float distances[GROUP][CHUNK], fresh[CHUNK], exponent = tile.exponent;
    for (long i = 0; i < tile.rows; i += GROUP) {
        long group = tile.rows - i < GROUP ? tile.rows - i : GROUP;
        for (long r = 0; r < group; r++) {
            const float *z = tile.z + (i + r) * tile.stride + first;
            float *d = distances[r];
            float least = INF, sum = 0;
#pragma omp simd
            for (long j = 0; j < width; j++) {
                bool far = z[j] == INF;
                float value = distance<G>(far ? 1 : z[j]);
                d[j] = far ? INF : value;
            }
#pragma omp simd reduction(min : least)
            for (long j = 0; j < width; j++) least = smaller(d[j], least);
            float from = origin(least);
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < width; j++) sum += exp2(exponent * (d[j] - from));
            row_least[i + r] = least;
            row_sum[i + r] = sum;
        }
        if (!tile.column_least) continue;
        float *column_least = tile.column_least + first, *column_sum = tile.column_sum + first;
        for (long j = 0; j < width; j++) fresh[j] = column_least[j];
        for (long r = 0; r < group; r++)
#pragma omp simd
            for (long j = 0; j < width; j++) fresh[j] = smaller(distances[r][j], fresh[j]);
#pragma omp simd
        for (long j = 0; j < width; j++) {
            float from = origin(fresh[j]);
            column_sum[j] *= exp2(exponent * (column_least[j] - from));
            column_least[j] = fresh[j];
            fresh[j] = from;
        }
        for (long r = 0; r < group; r++)
#pragma omp simd
            for (long j = 0; j < width; j++) column_sum[j] += exp2(exponent * (distances[r][j] - fresh[j]));
    }
}

// Take the (least, sum) of one chunk into those of the rows.
void merge(long rows, float exponent, const float *chunk_least, const float *chunk_sum, float *row_least,
           float *row_sum) {
#pragma omp simd
    for (long i = 0; i < rows; i++) {
        float least = smaller(chunk_least[i], row_least[i]), from = origin(least);
        float before = row_sum[i] * exp2(exponent * (row_least[i] - from));
        row_sum[i] = before + chunk_sum[i] * exp2(exponent * (chunk_least[i] - from));
        row_least[i] = least;
    }
}

// weights = dL/dz of this chunk, in place of z if they are the same; returns the sum of dL/dlogit * distance. The share of
// a pair is row_grad 2^(exponent (d - row_origin)), and the same for its column. Two loops, because one would be a chain of
// operations too long for a processor to work on several entries at once.
template <Geometry G, bool symmetric> double weigh(const Tile &tile, long first, long width, const Upstream &up) {
    double total = 0;
    float distances[CHUNK], slopes[CHUNK];
    const float *column_origin = up.column_origin + first, *column_grad = up.column_grad + first;
    for (long i = 0; i < tile.rows; i++) {
        const float *z = tile.z + i * tile.stride + first;
        float *weights = up.weights + i * up.stride + first;
        float row_origin = up.row_origin[i], row_grad = up.row_grad[i], sum = 0;
#pragma omp simd
        for (long j = 0; j < width; j++) {
            float near = z[j] == INF ? 1 : z[j];
            distances[j] = distance<G>(near);
            slopes[j] = slope<G>(near);
        }
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < width; j++) {
            float d = distances[j];
            float pull = row_grad * exp2(tile.exponent * (d - row_origin));
            if (symmetric) pull += column_grad[j] * exp2(tile.exponent * (d - column_origin[j]));
            pull = z[j] == INF ? 0 : pull;
            sum += pull * d;
            weights[j] = up.slope * pull * slopes[j];
        }
        total += sum;
    }
    return total;
}

template <Geometry G> double weigh(const Tile &tile, long first, long width, const Upstream &up) {
    return up.column_origin ? weigh<G, true>(tile, first, width, up) : weigh<G, false>(tile, first, width, up);
}

// Lorentz distances and, unless null, the inverse of their slopes, up to constant factors.
void distances(const float *z, long n, float factor, float *out, float inverse_factor, float *inverse) {
#pragma omp simd
    for (long i = 0; i < n; i++) out[i] = factor * distance<LORENTZ>(z[i]);
    if (!inverse) return;
#pragma omp simd
    for (long i = 0; i < n; i++) inverse[i] = inverse_factor * (__builtin_sqrtf(z[i]) * __builtin_sqrtf(1 + z[i]));
}

// sinh(x) for 0 <= x <= 89: a series, of an error of 3e-8, where the difference of two powers would lose digits.
INLINE float sinh(float x) {
    const float log2_e = 1.44269504f;
    float square = x * x, half = exp2(x * log2_e - 1);
    float series = x + x * square * (1 / 6.f + square * (1 / 120.f + square * (1 / 5040.f + square * (1 / 362880.f))));
    return x < 1 ? series : half - 0.25f / half;
}

// Of a row of Lorentz distances d and gradients: weights = gradient / (sinh(d / unit) / (2 unit)), the least of d, and the sum of
// gradient times d.
void distance_weights(const float *d, const float *grad, long n, float unit, float *weights, float *least, double *along) {
    float smallest = INF, inverse = 1 / unit;
    double total = 0;
    for (long first = 0; first < n; first += CHUNK) {
        long last = n - first < CHUNK ? n : first + CHUNK;
        float sum = 0;
#pragma omp simd reduction(min : smallest) reduction(+ : sum)
        for (long j = first; j < last; j++) {
            smallest = smaller(d[j], smallest);
            sum += grad[j] * d[j];
            weights[j] = grad[j] * (2 * unit / sinh(d[j] * inverse));
        }
        total += sum;
    }
    *least = smallest, *along = total;
}

double inner(const float *x, const float *y, long d) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long k = 0; k < d; k++) sum += (double)x[k] * y[k];
    return sum;
}

// out = factor x; returns |out|^2.
double scale(const float *x, long d, float factor, float *out) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long k = 0; k < d; k++) {
        out[k] = factor * x[k];
        sum += (double)out[k] * out[k];
    }
    return sum;
}

// |x|^2, |y|^2 and <x - y, x + y> of two rows.
void compare(const float *x, const float *y, long d, double *sums) {
    double xx = 0, yy = 0, wu = 0;
#pragma omp simd reduction(+ : xx, yy, wu)
    for (long k = 0; k < d; k++) {
        double a = x[k], b = y[k];
        xx += a * a;
        yy += b * b;
        wu += (a - b) * (a + b);
    }
    sums[0] = xx, sums[1] = yy, sums[2] = wu;
}

// |e|^2, <e, bisector> and |bisector|^2 of the directions a, b of two rows, bisector = a + b. e errs little where the rows
// are close.
void chords(const float *x, const float *y, long d, const Chord &chord, double *sums) {
    double of_x = chord.of_x, of_y = chord.of_y, r = chord.r, of_sum = chord.of_sum, ee = 0, eb = 0, bb = 0;
#pragma omp simd reduction(+ : ee, eb, bb)
    for (long k = 0; k < d; k++) {
        double bisector = x[k] * of_x + y[k] * of_y, e = (2 * ((double)x[k] - y[k]) - r * bisector) * of_sum;
        ee += e * e;
        eb += e * bisector;
        bb += bisector * bisector;
    }
    sums[0] = ee, sums[1] = eb, sums[2] = bb;
}

constexpr double EPS = 2.220446049250313e-16;

// A number of the chord; on one ray that is what rounding left, and 0: see NOISE of the reference.
INLINE double of_chord(const Chord &chord, double x, double y) {
    double bisector = x * chord.of_x + y * chord.of_y, w = x - y;
    double e = (2 * w - chord.r * bisector) * chord.of_sum - chord.leftover * bisector;
    return __builtin_fabs(e) < 5 * EPS * __builtin_fabs(w * chord.of_sum) ? 0 : e;
}

// |e|^2 of rows that may be on one ray.
double ray_chord(const float *x, const float *y, long d, const Chord &chord) {
    Chord e = chord;
    double ee = 0;
#pragma omp simd reduction(+ : ee)
    for (long k = 0; k < d; k++) {
        double number = of_chord(e, x[k], y[k]);
        ee += number * number;
    }
    return ee;
}

// out = c0 e + c1 own + c2 more, in double because the terms may cancel; more may be out itself.
void combine(const float *x, const float *y, long d, const Chord &chord, const double *c, const float *own, const float *more,
          float *out) {
    Chord e = chord;
    double c0 = c[0], c1 = c[1], c2 = c[2];
#pragma omp simd
    for (long k = 0; k < d; k++) out[k] = (float)(c2 * more[k] + (c0 * of_chord(e, x[k], y[k]) + c1 * own[k]));
}

// A number of y less its part along x; what rounding leaves of it on the ray of x is 0.
INLINE double rest(double y, double part, double x) {
    double along = part * x, across = y - along;
    return __builtin_fabs(across) < 2 * EPS * __builtin_fabs(along) ? 0 : across;
}

// Of across = y - part x: its inner products with itself, with z and with x.
void across(const float *x, const float *y, const float *z, long d, double part, double *sums) {
    double yy = 0, yz = 0, xy = 0;
#pragma omp simd reduction(+ : yy, yz, xy)
    for (long k = 0; k < d; k++) {
        double some = rest(y[k], part, x[k]);
        yy += some * some;
        yz += some * z[k];
        xy += some * x[k];
    }
    sums[0] = yy, sums[1] = yz, sums[2] = xy;
}

// out = c0 x + c1 (y - part_y x) + c2 (z - part_z x)
void spread(const float *x, const float *y, const float *z, long d, double part_y, double part_z, const double *c, float *out) {
    double c0 = c[0], c1 = c[1], c2 = c[2];
#pragma omp simd
    for (long k = 0; k < d; k++)
        out[k] = (float)(c0 * x[k] + (c1 * rest(y[k], part_y, x[k]) + c2 * rest(z[k], part_z, x[k])));
}

// out = c0 (x - y) + c1 x + c2 y + c3 grad
void mix(const float *x, const float *y, const float *grad, long d, const double *c, float *out) {
    double c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
#pragma omp simd
    for (long k = 0; k < d; k++) {
        double a = x[k], b = y[k];
        out[k] = (float)(c0 * (a - b) + (c1 * a + c2 * b + c3 * grad[k]));
    }
}

#include "pairs.h"
#include "angles.h"

constexpr Kernels kernels = {
    minima,
    {sums<LORENTZ>, sums<EUCLIDEAN>, sums<COSINE>},
    merge,
    {weigh<LORENTZ>, weigh<EUCLIDEAN>, weigh<COSINE>},
    distances,
    distance_weights,
    inner,
    scale,
    compare,
    chords,
    ray_chord,
    combine,
    across,
    spread,
    mix,
    row_powers,
    column_powers,
    softmax_gradients,
    add_sigmoid,
    sigmoid_gradients,
    angles,
    angle_slopes,
    [](const float *x, float *out, long n) { for (long i = 0; i < n; i++) out[i] = exp2(x[i]); },
    [](const float *x, float *out, long n) { for (long i = 0; i < n; i++) out[i] = log1p(x[i]); },
    [](const float *y, const float *x, float *out, long n) { for (long i = 0; i < n; i++) out[i] = atan2(y[i], x[i]); },
};
