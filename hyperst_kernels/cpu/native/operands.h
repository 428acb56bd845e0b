// The operands of the product H = left . right, and the way back from their gradients. In double but for what is stored.
//
//     left = [-X/2, a/2, 1/2]    right = [Y, b + 1, b]    X = growth x, a = sqrt(1 + |X|^2) - 1

// Functions of a rapidity p >= 0, from one exponential or none: these are what a row costs beside its sweeps.
struct Rapidity {
    double decay, half;  // e^-p, and (1 - e^-2p) / 2 = e^-p sinh p
    double sinh, cosh;
    double half_sinh2;  // sinh^2(p/2)
};

static Rapidity of_rapidity(double p) {
    double less = p < 0.5 ? std::expm1(-p) : std::exp(-p) - 1, decay = p < 0.5 ? 1 + less : std::exp(-p);
    double half = -less * (2 + less) / 2, growth = 1 / decay;
    return {decay, half, half * growth, (1 + decay * decay) * growth / 2, less * less * growth / 4};
}

static Rapidity of_sinh(double sinh) {
    double cosh = std::sqrt(1 + sinh * sinh), decay = 1 / (sinh + cosh);
    return {decay, sinh * decay, sinh, cosh, sinh * sinh / (2 * (1 + cosh))};
}

// sinh(t) / t, and kappa = (cosh t - sinh(t) / t) / t^2
struct Stretch {
    double value, kappa;
    Rapidity of;

    Stretch(double t) : of(of_rapidity(t)) {
        double t2 = t * t;
        value = t == 0 ? 1 : of.sinh / t;
        kappa = t2 < 1e-3 ? 1 / 3. + t2 / 30 + t2 * t2 / 840 : (of.cosh - value) / t2;
    }
};

static void operand(const float *x, long d, double unit, bool tangent, bool left, float *out) {
    // growth, from unit = sqrt(c) and |x|: X = sinh(unit |x|) x / |x| of tangent vectors, unit x of points
    double factor = tangent ? unit * Stretch(unit * std::sqrt(kernels.inner(x, x, d))).value : unit;
    double square = kernels.scale(x, d, (float)(left ? -factor / 2 : factor), out) * (left ? 4 : 1);
    double excess = square / (1 + std::sqrt(1 + square));
    out[d] = (float)(left ? excess / 2 : excess + 1), out[d + 1] = left ? 0.5f : (float)excess;
}

// dL/dX = factor along + excess X / (a + 1), along and excess being what grad says of X and a; and with
// d growth / dx = unit^3 kappa x, dL/dx = growth dL/dX + unit^3 kappa <x, dL/dX> x.
static void add_operand_slopes(const float *x, long d, double unit, bool tangent, bool left, const float *grad, float *out) {
    double square = kernels.inner(x, x, d), factor = left ? -0.5 : 1;
    Stretch stretch(tangent ? unit * std::sqrt(square) : 0);
    double grown = unit * stretch.value, excess = left ? grad[d] / 2. : (double)grad[d] + grad[d + 1];
    double along_x = excess * grown / std::sqrt(1 + grown * grown * square);
    double slope = grown * along_x;
    if (tangent)
        slope += unit * unit * unit * stretch.kappa * (factor * kernels.inner(x, grad, d) + along_x * square);
    double of[] = {0, slope, factor * grown, 1};
    kernels.mix(x, grad, out, d, of, out);
}
