// Exponential and logarithmic maps of rows, and their gradients, in double but for what is read and stored. The formulas
// are those of docs/maps.md.

// Rows of the arguments and results of a map. y is v in exp_map; maps of one row have none. grad is dL/dout.
struct MapRow {
    const float *x, *y, *grad;
    long d;
    double c, scale;
    float *out, *dx, *dy;
    double *scalars;  // dL/dscale, dL/dc
};

// asinh(z) / z as a function of H = z^2, and how fast it falls: z^2 times ``fall`` is the map less 1 / sqrt(1 + z^2).
struct Asinhc {
    double value, fall;

    Asinhc(double H) {
        if (H < 1e-3) {
            value = 1 - H / 6 + 3 * H * H / 40 - 5 * H * H * H / 112, fall = 1 / 3. - 3 * H / 10 + 15 * H * H / 56;
            return;
        }
        value = std::asinh(std::sqrt(H)) / std::sqrt(H), fall = (value - 1 / std::sqrt(1 + H)) / H;
    }
};

// out = c0 (x - y) + c1 x + c2 y + c3 grad
struct Mixture {
    double of_difference, of_x, of_y, of_grad;
};

static void mix(const MapRow &r, const Mixture &mixture, float *out) {
    double c[] = {mixture.of_difference, mixture.of_x, mixture.of_y, mixture.of_grad};
    kernels.mix(r.x, r.y ? r.y : r.x, r.grad ? r.grad : r.x, r.d, c, out);
}

static void exp_map0(const MapRow &r) {
    double t = std::sqrt(r.c * kernels.inner(r.x, r.x, r.d)) * std::fabs(r.scale);
    mix(r, {0, r.scale * Stretch(t).value, 0, 0}, r.out);
}

static void exp_map0_slopes(const MapRow &r) {
    double square = r.scale * r.scale * kernels.inner(r.x, r.x, r.d), along = kernels.inner(r.x, r.grad, r.d);
    Stretch stretch(std::sqrt(r.c * square));
    mix(r, {0, r.scale * r.c * r.scale * r.scale * stretch.kappa * along, 0, r.scale * stretch.value}, r.dx);
    r.scalars[0] = along * stretch.of.cosh, r.scalars[1] = along * r.scale * stretch.kappa * square / 2;
}

static void log_map0(const MapRow &r) { mix(r, {0, Asinhc(r.c * kernels.inner(r.x, r.x, r.d)).value, 0, 0}, r.out); }

static void log_map0_slopes(const MapRow &r) {
    double H = r.c * kernels.inner(r.x, r.x, r.d), along = kernels.inner(r.x, r.grad, r.d);
    Asinhc ratio(H);
    mix(r, {0, -r.c * ratio.fall * along, 0, ratio.value}, r.dx);
    r.scalars[0] = 0, r.scalars[1] = -along * ratio.fall * H / (2 * r.c);
}

// A vector as part x and what is across x.
struct Parts {
    double part, across2, product;  // product of what is across with a third vector

    Parts(const float *x, const float *v, const float *other, long d, double square) {
        double sums[3];
        part = square == 0 ? 0 : kernels.inner(x, v, d) / square;
        kernels.across(x, v, other, d, part, sums);
        if (square != 0) {  // what the rounding of one sum left along x
            part += sums[2] / square;
            kernels.across(x, v, other, d, part, sums);
        }
        across2 = sums[0], product = sums[1];
    }
};

// x = sinh(p) / sqrt(c) a and v = nu cosh(p) / sqrt(c) a + w / sqrt(c), t^2 = nu^2 + |w|^2: see reference/exponential.py.
// The point is R / sqrt(c) a + sinhc(t) w / sqrt(c). Inwards, sums of positive terms take the place of differences.
struct Geodesic {
    double unit, norm, sinh_p, cosh_p, nu, w2, t, cosh_t, stretch, bend, R, E;
    bool inwards;

    Geodesic(const MapRow &r, double square, const Parts &v) {
        unit = std::sqrt(r.c), norm = std::sqrt(square);
        sinh_p = unit * norm, cosh_p = std::sqrt(1 + r.c * square);
        nu = unit * v.part * norm / cosh_p, w2 = r.c * v.across2;
        t = std::sqrt(nu * nu + w2);
        Stretch of_t(t);
        stretch = of_t.value, bend = of_t.kappa, cosh_t = of_t.of.cosh;
        inwards = nu < 0 && t > 1 && -2 * nu > t;
        if (inwards) {
            double apart = std::asinh(sinh_p) - t, rest = stretch * w2 / (t - nu);
            R = std::sinh(apart) + rest * cosh_p, E = std::cosh(apart) + rest * sinh_p;
        } else {
            double along = nu * stretch;
            R = cosh_t * sinh_p + along * cosh_p, E = cosh_t * cosh_p + along * sinh_p;
        }
    }
};

static void exp_map(const MapRow &r) {
    double square = kernels.inner(r.x, r.x, r.d);
    Parts v(r.x, r.y, r.x, r.d, square);
    Geodesic g(r, square, v);
    double of[] = {g.R / (g.unit * nonzero(g.norm)), g.stretch, 0};
    kernels.spread(r.x, r.y, r.x, r.d, v.part, 0, of, r.out);
}

static void exp_map_slopes(const MapRow &r) {
    double square = kernels.inner(r.x, r.x, r.d);
    Parts v(r.x, r.y, r.grad, r.d, square), grad(r.x, r.grad, r.x, r.d, square);
    Geodesic g(r, square, v);
    double norm = nonzero(g.norm), along = grad.part * g.norm, tanh_p = g.sinh_p / g.cosh_p, bent = g.bend * g.w2;
    // with W = w . grad: dL/dt / t, that times nu, and dL/dp, in units of 1 / sqrt(c)
    double turned = g.bend * g.unit * v.product;
    double by_t = along * (g.stretch * g.sinh_p + g.bend * g.nu * g.cosh_p) + turned, by_nu = g.nu * by_t;
    if (g.inwards) by_nu = along * (g.E - g.cosh_p * (g.stretch + bent)) + g.nu * turned;
    double by_p = along * (g.E * (1 - g.nu * tanh_p) + g.nu * g.sinh_p * bent) - g.nu * tanh_p * (g.nu * turned);
    double of_x[] = {by_p / (g.cosh_p * norm), -by_nu * tanh_p * g.unit, g.cosh_t};
    double of_v[] = {(along * (g.E / g.cosh_p - bent) + g.nu * turned / g.cosh_p) / norm, by_t * g.unit, g.stretch};
    kernels.spread(r.x, r.y, r.grad, r.d, v.part, grad.part, of_x, r.dx);
    kernels.spread(r.x, r.y, r.grad, r.d, v.part, grad.part, of_v, r.dy);
    double by_c = by_t * g.w2 + g.nu * by_nu / (g.cosh_p * g.cosh_p);
    r.scalars[0] = 0, r.scalars[1] = by_c / (2 * r.c * g.unit);
}

static void log_map(const MapRow &r) {
    double H = polar(r.x, r.y, r.d, std::sqrt(r.c), false).H, ratio = Asinhc(H).value / std::sqrt(1 + H);  // D / sinh D
    mix(r, {-ratio, -2 * H * ratio, 0, 0}, r.out);
}

static void log_map_slopes(const MapRow &r) {
    double unit = std::sqrt(r.c);
    Polar t = polar(r.x, r.y, r.d, unit, false);
    double H = t.H, root = std::sqrt(1 + H);
    Asinhc half(H);
    double ratio = half.value / root, ratio_slope = -half.fall / (2 * root) - ratio / (2 * (1 + H));
    double back_slope = 2 * ratio + 2 * H * ratio_slope;  // of 2 H ratio
    double of_x = kernels.inner(r.x, r.grad, r.d), of_y = kernels.inner(r.y, r.grad, r.d);
    double slope = ratio_slope * (of_y - of_x) - back_slope * of_x;  // dL/dH
    Slopes along = slopes_of_H(t, slope, unit);
    double to_x[] = {along.x[0], along.x[1], -ratio * (1 + 2 * H)}, to_y[] = {along.y[0], along.y[1], ratio};
    kernels.combine(r.x, r.y, r.d, t.chord, to_x, r.x, r.grad, r.dx);
    kernels.combine(r.x, r.y, r.d, t.chord, to_y, r.y, r.grad, r.dy);
    double apart = gap(t, unit);
    r.scalars[0] = 0, r.scalars[1] = slope * (H - apart * apart / (4 * t.p.cosh * t.q.cosh)) / r.c;
}

using Map = void (*)(const MapRow &);
