// The operands of the product H = left . right, and the way back from their gradients. In double but for what is stored.
//
//     left = [-X/2, a/2, 1/2]    right = [Y, b + 1, b]    X = growth x, a = sqrt(1 + |X|^2) - 1

// growth, from unit = sqrt(c) and |x|: X = sinh(unit |x|) x / |x| of tangent vectors, unit x of points.
static double growth(double unit, double norm, bool tangent) {
    double t = unit * norm;
    return tangent && t != 0 ? unit * std::sinh(t) / t : unit;
}

// (cosh t - sinh(t) / t) / t^2
static double kappa(double t) {
    double t2 = t * t;
    if (t2 < 1e-3) return 1 / 3. + t2 / 30 + t2 * t2 / 840;
    return (std::cosh(t) - std::sinh(t) / t) / t2;
}

static void operand(const float *x, long d, double unit, bool tangent, bool left, float *out) {
    double factor = growth(unit, std::sqrt(kernels.inner(x, x, d)), tangent);
    double square = kernels.scale(x, d, (float)(left ? -factor / 2 : factor), out) * (left ? 4 : 1);
    double excess = square / (1 + std::sqrt(1 + square));
    out[d] = (float)(left ? excess / 2 : excess + 1), out[d + 1] = left ? 0.5f : (float)excess;
}

// dL/dX = factor along + excess X / (a + 1), along and excess being what grad says of X and a; and with
// d growth / dx = unit^3 kappa x, dL/dx = growth dL/dX + unit^3 kappa <x, dL/dX> x.
static void add_operand_slopes(const float *x, long d, double unit, bool tangent, bool left, const float *grad, float *out) {
    double square = kernels.inner(x, x, d), norm = std::sqrt(square), factor = left ? -0.5 : 1;
    double grown = growth(unit, norm, tangent), excess = left ? grad[d] / 2. : (double)grad[d] + grad[d + 1];
    double along_x = excess * grown / std::sqrt(1 + grown * grown * square);
    double slope = grown * along_x;
    if (tangent)
        slope += unit * unit * unit * kappa(unit * norm) * (factor * kernels.inner(x, grad, d) + along_x * square);
    double of[] = {0, slope, factor * grown, 1};
    kernels.mix(x, grad, out, d, of, out);
}
