// All terms of a contrastive loss on a small batch, and all relations of cones, in one call for each step between products.
//
// Tables of numbers of 64 bits say what there is: features are (x, stride, rows, gradient or null), operands (features,
// whether left, out), terms (queries, keys, whether symmetric, left, right, products, gradients of left and right), each
// matrix but the features with its rows in one piece. Where products have lost digits, or float32 does not hold them, nothing
// is computed and ``left_out`` is set: the code for any batch takes over.

constexpr double LN2 = 0.693147180559945309417;

struct Features {
    const float *x;
    int64_t stride, rows;
    float *grad;

    const float *row(long i) const { return x + i * stride; }
};

struct Operand {
    int64_t features, left;
    float *out;
};

struct Term {
    int64_t queries, keys, symmetric;
    const float *left, *right;
    float *products;
    const float *d_left, *d_right;
};

struct Relation {
    int64_t parent, child;
};

// What is common to the terms; columns of the operands are padded to ``width``.
struct Batch {
    const Features *features;
    const Term *terms;
    long d, width;
    double unit, scale;
    float exponent, near;
    double limit;  // of logits
    bool tangent;

    const Features &queries(const Term &term) const { return features[term.queries]; }
    const Features &keys(const Term &term) const { return features[term.keys]; }

    // Size of the terms that cancel in a product: see cpu/geometry.py.
    float size(const float *left, const float *right) const { return left[d] * right[d] + right[d + 1] / 2; }

    bool exceeds(double logit, double share) const { return std::fabs(logit) > share * limit && !std::isinf(logit); }

    Tile tile(const Term &term) const {
        return {term.products, keys(term).rows, queries(term).rows, keys(term).rows, exponent, nullptr, nullptr};
    }

    // The right operand with the largest terms, or null where some product is no number of float32.
    const float *widest(const Term &term) const {
        long n = queries(term).rows, m = keys(term).rows, most = 0, widest = 0;
        for (long i = 1; i < n; i++)
            if (!(term.left[i * width + d] <= term.left[most * width + d])) most = i;
        for (long j = 1; j < m; j++)
            if (!(term.right[j * width + d + 1] <= term.right[widest * width + d + 1])) widest = j;
        const float *right = term.right + widest * width;
        bool fits = 4 * (double)size(term.left + most * width, right) <= std::numeric_limits<float>::max();
        return fits ? right : nullptr;
    }

    // Whether some product of a row has lost its digits.
    bool cancels(const Term &term, long i, const float *widest) const {
        long m = keys(term).rows;
        const float *z = term.products + i * m, *left = term.left + i * width;
        float smallest;
        kernels.minima(z, m, 1, m, &smallest);
        if (!(smallest <= near * size(left, widest))) return false;
        for (long j = 0; j < m; j++)
            if (z[j] <= near * size(left, term.right + j * width)) return true;
        return false;
    }
};

// Of each term, see there; empty where one of them has products that are no numbers.
static std::vector<const float *> widest_of(const Batch &batch, long n_terms) {
    std::vector<const float *> found;
    for (long t = 0; t < n_terms; t++) {
        found.push_back(batch.widest(batch.terms[t]));
        if (!found.back()) return {};
    }
    return found;
}

// Logits: log-sum-exps over negatives of rows and columns, and positives, each (terms length).
struct Logits {
    double *rows, *columns, *positives;
    long length;

    Logits of(long t) const { return {rows + t * length, columns + t * length, positives + t * length, length}; }
};

static double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

static double add_exp(double a, double b) {
    double high = larger(a, b), low = a > b ? b : a;
    return std::isinf(low) ? high : high + std::log1p(std::exp(low - high));
}

// Of a row, the positive and the excluded pairs are no negatives.
static void leave_out(const Batch &batch, const Term &term, const int64_t *ids, long i) {
    long m = batch.keys(term).rows;
    float *z = term.products + i * m;
    z[i] = std::numeric_limits<float>::infinity();
    for (long j = 0; ids && j < m; j++) z[j] = ids[i] == ids[j] ? std::numeric_limits<float>::infinity() : z[j];
}

// Log-sum-exps of STRIP rows and columns from ``first`` on, from the sums of blocks; whether they are too large.
static bool merge_sums(const Batch &batch, const BlockSums &sums, long first, const Logits &out) {
    float row_least[STRIP], row_sum[STRIP], column_least[STRIP], column_sum[STRIP];
    for (long i = 0; i < STRIP; i++) {
        row_least[i] = column_least[i] = std::numeric_limits<float>::infinity();
        row_sum[i] = column_sum[i] = 0;
    }
    long count = piece_of(out.length, first, STRIP);
    sums.merge_rows(first, count, row_least, row_sum);
    if (sums.symmetric) sums.merge_columns(first, count, column_least, column_sum);
    bool exceeds = false;
    for (long i = 0; i < count; i++) {
        double &row = out.rows[first + i], &column = out.columns[first + i];
        row = LN2 * (batch.exponent * (double)row_least[i] + std::log2((double)row_sum[i]));
        column = LN2 * (batch.exponent * (double)column_least[i] + std::log2((double)column_sum[i]));
        exceeds |= batch.exceeds(row, 1) || batch.exceeds(column, 1);
    }
    return exceeds;
}

// What the weights of a term are made of: origins and relative gradients of its rows and of its columns.
struct Relative {
    float *row_origin, *row_grad, *column_origin, *column_grad;
    bool exceeds;

    // From the gradient of a loss, of a row or a column; returns minus the slope by the positive.
    float put(const Batch &batch, double negatives, double positive, float grad, float &origin, float &relative) {
        double scale = -batch.exponent * LN2, lse = add_exp(negatives, positive);  // of what the kernel calls distance
        exceeds |= batch.exceeds(lse, 1 - 1 / 65536.);
        origin = (float)(lse / -scale);
        if (std::isinf(origin)) origin = 0;
        relative = grad * (float)std::exp(-scale * origin - lse);
        return grad * (float)sigmoid(negatives - positive);
    }
};

// A row of every gradient, from those of the operands and positives; returns <x, dL/dx> over all features.
static double slopes_of_row(const Batch &batch, long n_features, long n_terms, const float *shares, long length, long i) {
    double root = 1 / batch.unit, along = 0;
    for (long k = 0; k < n_features; k++)
        if (i < batch.features[k].rows) std::fill_n(batch.features[k].grad + i * batch.d, batch.d, 0.f);
    for (long t = 0; t < n_terms; t++) {
        const Term &term = batch.terms[t];
        const Features &x = batch.queries(term), &y = batch.keys(term);
        float *dx = x.grad + i * batch.d, *dy = y.grad + i * batch.d;
        if (i < y.rows) add_operand_slopes(y.row(i), batch.d, root, batch.tangent, false, term.d_right + i * batch.width, dy);
        if (i >= x.rows) continue;
        add_operand_slopes(x.row(i), batch.d, root, batch.tangent, true, term.d_left + i * batch.width, dx);
        Rows pair = {x.x, x.stride, y.x, y.stride, batch.d, root, batch.tangent};
        Polar polar = pair.polar(i);
        pair.add(i, polar, slopes_of_distance(polar, root, batch.tangent), batch.scale * shares[t * length + i], dx, dy);
    }
    for (long k = 0; k < n_features; k++)
        if (i < batch.features[k].rows)
            along += kernels.inner(batch.features[k].row(i), batch.features[k].grad + i * batch.d, batch.d);
    return along;
}

#define BATCH                                                                                                            \
    const Features *features, const Term *terms, long n_terms, long d, long width, double unit, double scale,            \
        float exponent, float near, double limit, int tangent
#define OF_BATCH {features, terms, d, width, unit, scale, exponent, near, limit, (bool)tangent}

extern "C" {

void hyperst_operands(const Features *features, const Operand *operands, long count, long d, long width, double root,
                      int tangent, int threads) {
#pragma omp parallel num_threads(threads)
    for (long k = 0; k < count; k++) {
        const Operand &operand = operands[k];
        const Features &of = features[operand.features];
#pragma omp for schedule(static) nowait
        for (long i = 0; i < of.rows; i++) {
            float *out = operand.out + i * width;
            ::operand(of.row(i), d, root, tangent, operand.left, out);
            for (long column = d + 2; column < width; column++) out[column] = 0;
        }
    }
}

// losses of rows and columns and their logits, each (terms length), for terms of one shape with ``length`` queries; products
// become those of negatives.
void hyperst_term_losses(BATCH, const int64_t *ids, float *row_losses, float *column_losses, double *rows, double *columns,
                         double *positives, long length, int64_t *left_out, int threads) {
    Batch batch = OF_BATCH;
    Logits logits = {rows, columns, positives, length};
    long m = batch.keys(*terms).rows, blocks = blocks_of(length, m), strips = pieces(length, STRIP);
    long numbers = BlockSums::numbers(length, m, true);
    std::vector<const float *> widest = widest_of(batch, n_terms);
    *left_out = widest.empty();
    if (*left_out) return;
    std::vector<float> memory(n_terms * numbers);
    auto sums = [&](long t) -> BlockSums {
        return {batch.tile(terms[t]), memory.data() + t * numbers, (bool)terms[t].symmetric};
    };
    bool cancel = false, exceed = false;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) reduction(|| : cancel)
        for (long k = 0; k < n_terms * length; k++) {
            const Term &term = terms[k / length];
            leave_out(batch, term, ids, k % length);
            cancel = cancel || batch.cancels(term, k % length, widest[k / length]);
        }
        if (!cancel) {
#pragma omp for schedule(static)
            for (long k = 0; k < n_terms * blocks; k++) sums(k / blocks).add(LORENTZ, k % blocks);
#pragma omp for schedule(static) reduction(|| : exceed)
            for (long k = 0; k < n_terms * strips; k++)
                exceed = merge_sums(batch, sums(k / strips), k % strips * STRIP, logits.of(k / strips)) || exceed;
#pragma omp for schedule(static) reduction(|| : exceed)
            for (long k = 0; k < n_terms * length; k++) {
                const Features &x = batch.queries(terms[k / length]), &y = batch.keys(terms[k / length]);
                Rows pair = {x.x, x.stride, y.x, y.stride, d, 1 / unit, (bool)tangent};
                positives[k] = -scale * distance(pair.polar(k % length), 1 / unit);
                exceed = exceed || batch.exceeds(positives[k], 1);
                row_losses[k] = (float)softplus(rows[k] - positives[k]);
                column_losses[k] = (float)softplus(columns[k] - positives[k]);
            }
        }
    }
    *left_out = cancel || exceed;
}

// weights (terms, then n m of each in one piece), shares (terms length), which are minus the slopes by positives, and the derivative
// by the scale of each term, from gradients of losses.
void hyperst_term_weights(BATCH, const float *grad_rows, const float *grad_columns, double *rows, double *columns,
                          double *positives, long length, float *weights, long weights_stride, float *shares,
                          double *d_scale, int64_t *left_out, int threads) {
    Batch batch = OF_BATCH;
    long m = batch.keys(*terms).rows, blocks = blocks_of(length, m), numbers = 2 * (length + m);
    std::vector<const float *> widest = widest_of(batch, n_terms);
    std::vector<float> memory(n_terms * numbers);  // zeros: keys beyond the queries have no loss
    std::vector<double> along(n_terms * blocks);
    auto relative = [&](long t) -> Relative {
        float *of = memory.data() + t * numbers;
        return {of, of + length, of + 2 * length, of + 2 * length + m, false};
    };
    bool left = widest.empty();
    for (long t = 0; t < n_terms; t++) left = left || std::isnan(terms[t].products[0]);
    *left_out = left;
    if (left) return;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) reduction(|| : left)
        for (long k = 0; k < n_terms * length; k++) {
            long t = k / length, i = k % length;
            Relative of = relative(t);
            shares[k] = of.put(batch, rows[k], positives[k], grad_rows[k], of.row_origin[i], of.row_grad[i]);
            if (terms[t].symmetric)
                shares[k] += of.put(batch, columns[k], positives[k], grad_columns[k], of.column_origin[i], of.column_grad[i]);
            left = left || of.exceeds || batch.cancels(terms[t], i, widest[t]);
        }
        if (!left) {
#pragma omp for schedule(static)
            for (long k = 0; k < n_terms * blocks; k++) {
                long t = k / blocks;
                Relative of = relative(t);
                if (!terms[t].symmetric) of.column_origin = of.column_grad = nullptr;
                Upstream up = {of.row_origin, of.row_grad, of.column_origin, of.column_grad, (float)(-scale * unit),
                               weights + t * weights_stride, m};
                along[k] = weigh_block(LORENTZ, batch.tile(terms[t]), up, k % blocks);
            }
        }
    }
    *left_out = left;
    for (long t = 0; t < n_terms; t++) {
        double by_positives = 0, by_negatives = 0;
        for (long i = t * length; i < (t + 1) * length; i++) by_positives += shares[i] * positives[i];
        for (long k = t * blocks; k < (t + 1) * blocks; k++) by_negatives += along[k];
        d_scale[t] = -by_positives / scale - 2 * unit * by_negatives;
    }
}

// Gradients of the features; along (rows) receives <x, dL/dx> of the rows of all.
void hyperst_term_slopes(BATCH, long n_features, const float *shares, long length, double *along, long rows, int threads) {
    Batch batch = OF_BATCH;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) along[i] = slopes_of_row(batch, n_features, n_terms, shares, length, i);
}

// Hinges (relations rows) of matching rows.
void hyperst_hinges(const Features *features, const Relation *relations, long count, long rows, long d, double unit, int tangent,
                    const double *etas, double min_radius, float *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long k = 0; k < count * rows; k++) {
        const Features &x = features[relations[k / rows].parent], &y = features[relations[k / rows].child];
        Rows pair = {x.x, x.stride, y.x, y.stride, d, unit, (bool)tangent};
        out[k] = (float)hinge(pair.polar(k % rows), etas[k / rows], min_radius);
    }
}

// Gradients of the features from grad (relations rows); dc (rows) receives each row's derivative by the curvature.
void hyperst_hinges_slopes(const Features *features, long n_features, const Relation *relations, long count, long rows, long d,
                           double unit, int tangent, const double *etas, double min_radius, const float *grad, double *dc,
                           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++) {
        for (long k = 0; k < n_features; k++) std::fill_n(features[k].grad + i * d, d, 0.f);
        dc[i] = 0;
        for (long k = 0; k < count; k++) {
            const Features &x = features[relations[k].parent], &y = features[relations[k].child];
            Rows pair = {x.x, x.stride, y.x, y.stride, d, unit, (bool)tangent};
            Polar polar = pair.polar(i);
            Slopes slopes = slopes_of_hinge(polar, etas[k], min_radius, unit, tangent);
            dc[i] += pair.add(i, polar, slopes, grad[k * rows + i], x.grad + i * d, y.grad + i * d);
        }
    }
}
}
