// Exterior angles of a block of pairs from the cosines of their directions. See blocked/angle.py for the mathematics.
//
// Included by tile.h, once per instruction set. With p, q the rapidities of a query and a key, everything is e^-(p+q) times what it
// is called. Pairs whose cosine has lost the digits of the angle are counted, and their slopes are 0: others compute them.

constexpr float PI = 3.14159265358979f, TAN_EIGHTH = 0.414213562373095f;

// Of (x, y) with y >= 0, in [0, pi]; 0 at the origin, NaN where x is. Up to tan(pi/8), atan(s) = s + s^3 P(s^2) with P of degree
// 3, which has the least relative error: 2e-8. Beyond, atan(s) = pi/4 + atan((s - 1) / (s + 1)).
INLINE float atan2(float y, float x) {
    float flat = __builtin_fabsf(x), low = smaller(y, flat), high = y > flat ? y : flat;
    bool steep = low > TAN_EIGHTH * high;
    float tangent = (steep ? low - high : low) / (steep ? low + high : high == 0 ? 1 : high);
    float square = tangent * tangent;
    float p = 8.06030631e-2f;
    p = p * square - 0.13879849f;
    p = p * square + 0.199779257f;
    p = p * square - 0.333329558f;
    float angle = p * square * tangent + tangent;
    angle = steep ? angle + PI / 4 : angle;
    angle = y > flat ? PI / 2 - angle : angle;
    return x < 0 ? PI - angle : angle;
}

struct Turned {
    float versine, sine, radial, across, along;  // 1 - cos theta, sin theta, sinh(q - p), S and C
    bool near, left_out;
};

// Rapidities that are small differ as their sines do, and large ones as powers. Of the origin no pair is left out.
INLINE Turned turned(float cosine, const PolarRow &u, const PolarRow &v, float limit) {
    Turned t;
    float square = (1 - cosine) * (1 + cosine);
    t.versine = 1 - cosine, t.sine = __builtin_sqrtf(square < 0 ? 0 : square);
    t.near = (u.half_square > 0.25f) | (v.half_square > 0.25f);
    float by_sines = v.sinh - u.sinh, by_powers = u.half_square - v.half_square;
    t.radial = t.near ? by_sines : by_powers;
    t.across = u.decay * v.sinh * t.sine, t.along = t.radial - u.cosh * v.sinh * t.versine;
    t.left_out = ((t.versine < limit) | (t.versine > 2 - limit)) & (v.sinh > 0);
    return t;
}

// Angles of a chunk of columns; returns how many pairs are left to others.
double angles(const AngleTile &tile, long first, long width, float *out, long out_stride) {
    PolarRows keys = tile.y.from(first);  // locals: members of the tile would be loaded again after each store
    float count = 0, limit = tile.limit;
    for (long i = 0; i < tile.rows; i++) {
        PolarRow u = tile.x.row(i);
        const float *cosine = tile.cosine + i * tile.stride + first;
        float *angle = out + i * out_stride + first;
        if (u.sinh == 0) {
            for (long j = 0; j < width; j++) angle[j] = PI / 2;
            continue;
        }
#pragma omp simd reduction(+ : count)
        for (long j = 0; j < width; j++) {
            Turned t = turned(cosine[j], u, keys.row(j), limit);
            angle[j] = atan2(t.across, t.along);
            count += t.left_out ? 1.f : 0.f;
        }
    }
    return count;
}

// From those by angles, gradients by cosines and by rapidities of rows and columns; and sums: twice the gradient by the logarithm
// of c, and how many pairs are left to others.
void angle_slopes(const AngleTile &tile, long first, long width, const AngleSlopes &out, float *by_row, double *sums) {
    PolarRows keys = tile.y.from(first);
    float by_column[CHUNK] = {}, count = 0, limit = tile.limit;
    double along_curvature = 0;
    for (long i = 0; i < tile.rows; i++) {
        PolarRow u = tile.x.row(i);
        const float *cosine = tile.cosine + i * tile.stride + first, *grad = out.grad + i * out.grad_stride + first;
        float *weights = out.weights + i * out.weights_stride + first;
        float by_p = 0, by_c = 0;
        if (u.sinh == 0) {
            for (long j = 0; j < width; j++) weights[j] = 0;
            by_row[i] = 0;
            continue;
        }
#pragma omp simd reduction(+ : by_p, by_c, count)
        for (long j = 0; j < width; j++) {
            PolarRow v = keys.row(j);
            Turned t = turned(cosine[j], u, v, limit);
            // sinh D, whose square may be no number
            float flat = __builtin_fabsf(t.along), high = t.across > flat ? t.across : flat;
            float ratio = smaller(t.across, flat) / high;
            float inverse = 1 / (high * __builtin_sqrtf(1 + ratio * ratio)), inverse_sine = 1 / t.sine;
            float upstream = grad[j] * inverse, growth = u.sinh * v.sinh * t.versine;
            bool none = t.left_out | (v.sinh == 0);
            upstream = none ? 0 : upstream, inverse = none ? 0 : inverse, inverse_sine = none ? 0 : inverse_sine;
            float turn = upstream * t.sine;
            by_p += upstream * (t.across * inverse) * (u.half_square + v.half_square + growth);
            by_column[j] -= turn * (u.sinh * inverse) * u.decay * (2 * v.half_square);
            float slope = v.sinh * u.decay * ((t.radial + u.sinh * v.cosh * t.versine) * inverse);
            weights[j] = -upstream * slope * inverse_sine;
            // p d angle / dp + q d angle / dq of tangent vectors (tanh p and tanh q of points)
            float by_lift = v.lift - u.lift, by_decay = u.decay - v.decay, apart = t.near ? by_lift : by_decay;
            float along = v.sinh * (growth + apart * apart / 2) + v.of_curvature * (v.excess * u.decay - u.excess * v.decay);
            by_c += turn * (u.of_curvature * along * inverse);
            count += t.left_out ? 1.f : 0.f;
        }
        by_row[i] = by_p, along_curvature += by_c;
    }
    for (long j = 0; j < width; j++) out.by_column[first + j] = by_column[j];
    sums[0] = along_curvature, sums[1] = count;
}
