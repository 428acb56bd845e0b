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

    // Whether some product is no number of float32 or has lost its digits.
    bool needs_others(const Term &term) const {
        long n = queries(term).rows, m = keys(term).rows, most = 0, widest = 0;
        for (long i = 1; i < n; i++)
            if (!(term.left[i * width + d] <= term.left[most * width + d])) most = i;
        for (long j = 1; j < m; j++)
            if (!(term.right[j * width + d + 1] <= term.right[widest * width + d + 1])) widest = j;
        const float *right = term.right + widest * width;
        if (!(4 * (double)size(term.left + most * width, right) <= std::numeric_limits<float>::max())) return true;
        for (long i = 0; i < n; i++) {
            const float *z = term.products + i * m, *left = term.left + i * width;
            float smallest;
            kernels.minima(z, m, 1, m, &smallest);
            if (!(smallest <= near * size(left, right))) continue;
            for (long j = 0; j < m; j++)
                if (z[j] <= near * size(left, term.right + j * width)) return true;
        }
        return false;
    }
};

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

// The positives, excluded pairs and then the sums of a term; whether they are left to others.
static bool sums_of_term(const Batch &batch, const Term &term, const int64_t *ids, const Logits &out) {
    long n = batch.queries(term).rows, m = batch.keys(term).rows;
    for (long i = 0; i < n; i++) {
        float *z = term.products + i * m;
        z[i] = std::numeric_limits<float>::infinity();
        for (long j = 0; ids && j < m; j++) z[j] = ids[i] == ids[j] ? std::numeric_limits<float>::infinity() : z[j];
    }
    if (batch.needs_others(term)) return true;
    float work[4 * SMALL], *least = work, *total = work + SMALL, *chunk_least = work + 2 * SMALL, *chunk_total = work + 3 * SMALL;
    float column_least[SMALL], column_total[SMALL];
    for (long i = 0; i < SMALL; i++) {
        least[i] = column_least[i] = std::numeric_limits<float>::infinity();
        total[i] = column_total[i] = 0;
    }
    bool symmetric = term.symmetric;
    Tile tile = {term.products, m, n, m, batch.exponent, symmetric ? column_least : nullptr, symmetric ? column_total : nullptr};
    for (long first = 0; first < m; first += CHUNK) {
        kernels.sums[LORENTZ](tile, first, width_of(m, first), chunk_least, chunk_total);
        kernels.merge(n, batch.exponent, chunk_least, chunk_total, least, total);
    }
    bool exceeds = false;
    for (long i = 0; i < out.length; i++) {
        out.rows[i] = LN2 * (batch.exponent * (double)least[i] + std::log2((double)total[i]));
        out.columns[i] = LN2 * (batch.exponent * (double)column_least[i] + std::log2((double)column_total[i]));
        exceeds |= batch.exceeds(out.rows[i], 1) || batch.exceeds(out.columns[i], 1);
    }
    return exceeds;
}

// From gradients of the losses of a term, those of its products; shares are minus the slopes by positives. Returns the
// derivative by the scale, or NaN where it is left to others.
static double weights_of_term(const Batch &batch, const Term &term, const float *grad_rows, const float *grad_columns,
                              const Logits &in, float *weights, float *shares, bool &left_out) {
    long n = batch.queries(term).rows, m = batch.keys(term).rows;
    bool symmetric = term.symmetric;
    double scale = -batch.exponent * LN2, d_scale = 0;  // of what the kernel calls distance
    float origins[4 * SMALL], *grads = origins + SMALL, *column_origins = origins + 2 * SMALL, *column_grads = origins + 3 * SMALL;
    auto upstream = [&](double negatives, double positive, float grad, float &origin, float &relative) {
        double lse = add_exp(negatives, positive);
        left_out |= batch.exceeds(lse, 1 - 1 / 65536.);
        origin = (float)(lse / -scale);
        if (std::isinf(origin)) origin = 0;
        relative = grad * (float)std::exp(-scale * origin - lse);
        return grad * (float)sigmoid(negatives - positive);
    };
    for (long i = 0; i < n; i++) {
        double positive = in.positives[i];
        shares[i] = upstream(in.rows[i], positive, grad_rows[i], origins[i], grads[i]);
        if (symmetric) shares[i] += upstream(in.columns[i], positive, grad_columns[i], column_origins[i], column_grads[i]);
        d_scale += shares[i] * positive;
    }
    for (long j = n; j < m; j++) column_origins[j] = column_grads[j] = 0;
    left_out |= std::isnan(term.products[0]) || batch.needs_others(term);
    if (left_out) return 0;
    Tile tile = {term.products, m, n, m, batch.exponent, nullptr, nullptr};
    Upstream up = {origins, grads, symmetric ? column_origins : nullptr, symmetric ? column_grads : nullptr,
                   (float)(-batch.scale * batch.unit), weights, m};
    double along = 0;
    for (long first = 0; first < m; first += CHUNK) along += kernels.weigh[LORENTZ](tile, first, width_of(m, first), up);
    return -d_scale / batch.scale - 2 * batch.unit * along;
}

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

// losses of rows and columns and their logits, each (terms length); products become those of negatives.
void hyperst_term_losses(BATCH, const int64_t *ids, float *row_losses, float *column_losses, double *rows, double *columns,
                         double *positives, long length, int64_t *left_out, int threads) {
    Batch batch = OF_BATCH;
    Logits logits = {rows, columns, positives, length};
    bool left = false;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(|| : left)
    for (long t = 0; t < n_terms; t++) left = left || sums_of_term(batch, terms[t], ids, logits.of(t));
#pragma omp parallel for num_threads(threads) schedule(static) reduction(|| : left)
    for (long k = 0; k < n_terms * length; k++) {
        const Features &x = batch.queries(terms[k / length]), &y = batch.keys(terms[k / length]);
        Rows pair = {x.x, x.stride, y.x, y.stride, d, 1 / unit, (bool)tangent};
        positives[k] = k % length < x.rows ? -scale * distance(pair.polar(k % length), 1 / unit) : 0;
        left = left || batch.exceeds(positives[k], 1);
        row_losses[k] = (float)softplus(rows[k] - positives[k]);
        column_losses[k] = (float)softplus(columns[k] - positives[k]);
    }
    *left_out = left;
}

// weights (terms, then n m of each in one piece), shares (terms length) and the derivative by the scale, of each term.
void hyperst_term_weights(BATCH, const float *grad_rows, const float *grad_columns, double *rows, double *columns,
                          double *positives, long length, float *weights, long weights_stride, float *shares,
                          double *d_scale, int64_t *left_out, int threads) {
    Batch batch = OF_BATCH;
    Logits logits = {rows, columns, positives, length};
    bool left = false;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(|| : left)
    for (long t = 0; t < n_terms; t++) {
        long at = t * length;
        d_scale[t] = weights_of_term(batch, terms[t], grad_rows + at, grad_columns + at, logits.of(t),
                                     weights + t * weights_stride, shares + at, left);
    }
    *left_out = left;
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
