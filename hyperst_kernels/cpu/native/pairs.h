// What the distances of a block add to losses of all pairs, and the way back. See blocked/pairs.py for the mathematics.
//
// Included by tile.h, once per instruction set. A cost is the product of two floats, which a double holds exactly.

INLINE float power(double apart) { return exp2((float)(-1.4426950408889634 * apart)); }

INLINE double nearest_or_0(double nearest) { return nearest == (double)INF ? 0 : nearest; }

// +1 of positives, -1 of negatives and 0 of pairs that are left out, of a row; whether all are negatives.
INLINE bool classes(const PairBlock &block, long i, long first, long width, float *sign) {
    const int64_t *ids = block.column_ids ? block.column_ids + first : nullptr;
    int64_t id = ids ? block.row_ids[i] : 0;
    float most = -1;
    if (ids) {
#pragma omp simd reduction(max : most)
        for (long j = 0; j < width; j++) {
            sign[j] = ids[j] == id ? 1.f : -1.f;
            most = sign[j] > most ? sign[j] : most;
        }
    } else {
        for (long j = 0; j < width; j++) sign[j] = -1;
        long diagonal = block.diagonal + i - first;
        if (diagonal >= 0 && diagonal < width) most = sign[diagonal] = 1;
    }
    if (!block.excluded_columns) return most < 0;
    const int64_t *excluded = block.excluded_columns + first;
    id = block.excluded_rows[i];
#pragma omp simd reduction(max : most)
    for (long j = 0; j < width; j++) {
        sign[j] = sign[j] < 0 && excluded[j] == id ? 0.f : sign[j];
        most = sign[j] > most ? sign[j] : most;
    }
    return most < 0;
}

// The sums of one row or column over pairs of one class, as doubles.
struct Sums {
    double *nearest, *total;

    // Make room for a nearer cost; returns what costs are compared with.
    double nearer(double cost) const {
        if (cost < *nearest) {
            *total *= __builtin_exp(cost - *nearest);
            *nearest = cost;
        }
        return nearest_or_0(*nearest);
    }
};

// Those of negatives are counted, and their costs summed, where a loss asks for it.
void row_powers(const PairBlock &block, long i, double *sums, long stride, bool counted) {
    Sums positives = {sums + i, sums + stride + i}, negatives = {sums + 4 * stride + i, sums + 5 * stride + i};
    double scale = block.scale[i];
    float sign[CHUNK];
    for (long first = 0; first < block.columns; first += CHUNK) {
        long width = block.columns - first < CHUNK ? block.columns - first : CHUNK;
        const float *d = block.values + i * block.stride + first;
        bool plain = classes(block, i, first, width, sign);
        if (block.row_limits) {
            float limit = block.row_limits[i];
            for (long j = 0; j < width; j++) sign[j] = sign[j] < 0 && d[j] < limit ? 0.f : sign[j];
        }
        float least = INF, least_positive = INF;
        // the scale is above 0: the least distance has the least cost
#pragma omp simd reduction(min : least)
        for (long j = 0; j < width; j++) least = smaller(sign[j] < 0 ? d[j] : INF, least);
        double before = *negatives.nearest, origin = negatives.nearer(scale * least);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < width; j++) {
            float term = power(scale * d[j] - origin);
            sum += sign[j] < 0 ? term : 0;
        }
        *negatives.total += sum;
        float apart = 0, count = 0;
        if (counted) {
            double &spread = sums[6 * stride + i], &number = sums[7 * stride + i];
            spread += number == 0 ? 0 : number * (before - origin);
#pragma omp simd reduction(+ : apart, count)
            for (long j = 0; j < width; j++) {
                apart += sign[j] < 0 ? (float)(scale * d[j] - origin) : 0;
                count += sign[j] < 0 ? 1.f : 0;
            }
            spread += apart, number += count;
        }
        if (plain) continue;
        double &spread = sums[2 * stride + i], &number = sums[3 * stride + i];
        before = *positives.nearest;
        apart = count = sum = 0;
#pragma omp simd reduction(min : least_positive)
        for (long j = 0; j < width; j++) least_positive = smaller(sign[j] > 0 ? d[j] : INF, least_positive);
        origin = positives.nearer(scale * least_positive);
        spread += number == 0 ? 0 : number * (before - origin);
#pragma omp simd reduction(+ : sum, apart, count)
        for (long j = 0; j < width; j++) {
            double cost = scale * d[j] - origin;
            float term = power(cost);
            sum += sign[j] > 0 ? term : 0;
            apart += sign[j] > 0 ? (float)cost : 0;
            count += sign[j] > 0 ? 1.f : 0;
        }
        *positives.total += sum, spread += apart, number += count;
    }
}

// Of all columns of a chunk, a group of rows at a time.
void column_powers(const PairBlock &block, long first, long width, double *sums, long stride, bool counted) {
    float signs[GROUP][CHUNK], sum[CHUNK], apart[CHUNK], count[CHUNK];
    double fresh[CHUNK];
    for (long top = 0; top < block.rows; top += GROUP) {
        long group = block.rows - top < GROUP ? block.rows - top : GROUP;
        bool plain = true;
        for (long r = 0; r < group; r++) plain &= classes(block, top + r, first, width, signs[r]);
        for (long r = 0; r < group && block.column_limits; r++) {
            const float *d = block.values + (top + r) * block.stride + first, *limits = block.column_limits + first;
            float *sign = signs[r];
            for (long j = 0; j < width; j++) sign[j] = sign[j] < 0 && d[j] < limits[j] ? 0.f : sign[j];
        }
        for (float side = -1; side < (plain ? 0 : 2); side += 2) {
            double *near = sums + first + (side < 0 ? 4 * stride : 0), *all = near + stride;
            double *spread = all + stride, *number = spread + stride;
            bool counts = side > 0 || counted;
            for (long j = 0; j < width; j++) fresh[j] = near[j], sum[j] = apart[j] = count[j] = 0;
            for (long r = 0; r < group; r++) {
                const float *d = block.values + (top + r) * block.stride + first, *sign = signs[r];
                double scale = block.scale[top + r];
#pragma omp simd
                for (long j = 0; j < width; j++) {
                    double cost = scale * d[j];
                    fresh[j] = sign[j] == side && cost < fresh[j] ? cost : fresh[j];
                }
            }
#pragma omp simd
            for (long j = 0; j < width; j++) {
                double origin = nearest_or_0(fresh[j]);
                bool some = near[j] != (double)INF;
                double back = some ? near[j] - origin : 0;
                all[j] *= power(back);
                if (counts) spread[j] += number[j] * back;
                near[j] = fresh[j], fresh[j] = origin;
            }
            for (long r = 0; r < group; r++) {
                const float *d = block.values + (top + r) * block.stride + first, *sign = signs[r];
                double scale = block.scale[top + r];
#pragma omp simd
                for (long j = 0; j < width; j++) {
                    double cost = scale * d[j] - fresh[j];
                    float term = power(cost);
                    bool part = sign[j] == side;
                    sum[j] += part ? term : 0;
                    apart[j] += part ? (float)cost : 0;
                    count[j] += part ? 1.f : 0;
                }
            }
            for (long j = 0; j < width; j++) {
                all[j] += sum[j];
                if (counts) spread[j] += apart[j], number[j] += count[j];
            }
        }
    }
}

// dL / d distance of the pairs of a row, and its sums of dL/dlogit times distance and of dL/dlogit.
template <class Slope>
INLINE void put_gradients(const PairBlock &block, long i, float *out, double *sums, long sums_stride, Slope slope_of) {
    float scale = block.scale[i], sign[CHUNK];
    for (long first = 0; first < block.columns; first += CHUNK) {
        long width = block.columns - first < CHUNK ? block.columns - first : CHUNK;
        const float *d = block.values + i * block.stride + first;
        classes(block, i, first, width, sign);
        float by_distance = 0, sum = 0;
#pragma omp simd reduction(+ : by_distance, sum)
        for (long j = 0; j < width; j++) {
            float slope = slope_of(first + j, d[j], (double)scale * d[j], sign[j]);
            by_distance += slope * d[j];
            sum += slope;
            out[first + j] = -scale * slope;
        }
        sums[0] += by_distance, sums[sums_stride] += sum;
    }
}

// Of a pair, with the smallest distance that a negative may have.
template <bool SMOOTH> INLINE float softmax_slope(const Weights &of, long i, float limit, float d, double cost, float sign) {
    float term = power(cost - (sign > 0 ? of.nearest[i] : of.nearest_negative[i]));
    float positive = of.positive[i] * term - of.constant[i];
    float negative = of.negative[i] * term - (SMOOTH ? of.constant_negative[i] : 0);
    return sign > 0 ? positive : sign < 0 && !(d < limit) ? negative : 0;
}

template <bool SMOOTH, bool LIMITED>
void softmax_gradients_of(const PairBlock &block, long i, Weights own, Weights other, float *out, double *sums, long sums_stride) {
    float limit = LIMITED ? block.row_limits[i] : -INF;
    const float *limits = block.column_limits;
    if (other.nearest)
        put_gradients(block, i, out, sums, sums_stride, [=](long j, float d, double cost, float sign) {
            return softmax_slope<SMOOTH>(own, i, limit, d, cost, sign) +
                   softmax_slope<SMOOTH>(other, j, LIMITED ? limits[j] : -INF, d, cost, sign);
        });
    else
        put_gradients(block, i, out, sums, sums_stride, [=](long, float d, double cost, float sign) {
            return softmax_slope<SMOOTH>(own, i, limit, d, cost, sign);
        });
}

void softmax_gradients(const PairBlock &block, long i, const Weights &rows, const Weights &columns, float *out, double *sums,
                       long sums_stride) {
    auto compute = rows.constant_negative
                       ? block.row_limits ? softmax_gradients_of<true, true> : softmax_gradients_of<true, false>
                   : block.row_limits ? softmax_gradients_of<false, true>
                                      : softmax_gradients_of<false, false>;
    compute(block, i, rows, columns, out, sums, sums_stride);
}

// Of a logit, of either sign by the class of the pair.
void add_sigmoid(const PairBlock &block, long i, double bias, double *losses) {
    double scale = block.scale[i];
    float sign[CHUNK];
    for (long first = 0; first < block.columns; first += CHUNK) {
        long width = block.columns - first < CHUNK ? block.columns - first : CHUNK;
        const float *d = block.values + i * block.stride + first;
        classes(block, i, first, width, sign);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long j = 0; j < width; j++) {
            float x = sign[j] * (float)(scale * d[j] - bias);  // the logit of a negative, minus that of a positive
            float loss = (x > 0 ? x : 0) + log1p(power(x < 0 ? -x : x));
            sum += sign[j] == 0 ? 0 : loss;
        }
        losses[i] += sum;
    }
}

void sigmoid_gradients(const PairBlock &block, long i, double bias, float grad, float *out, double *sums, long sums_stride) {
    put_gradients(block, i, out, sums, sums_stride, [=](long, float, double cost, float sign) {
        float x = sign * (float)(cost - bias);
        float tail = power(x < 0 ? -x : x);
        float slope = (x > 0 ? 1 : tail) / (1 + tail);
        return -sign * grad * slope;
    });
}
