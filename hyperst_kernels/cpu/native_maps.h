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
static double asinhc(double H) {
    if (H < 1e-3) return 1 - H / 6 + 3 * H * H / 40 - 5 * H * H * H / 112;
    return std::asinh(std::sqrt(H)) / std::sqrt(H);
}

static double fall(double H) {
    if (H < 1e-3) return 1 / 3. - 3 * H / 10 + 15 * H * H / 56;
    return (asinhc(H) - 1 / std::sqrt(1 + H)) / H;
}

static double sinhc(double t) { return t == 0 ? 1 : std::sinh(t) / t; }

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
    mix(r, {0, r.scale * sinhc(t), 0, 0}, r.out);
}

static void exp_map0_slopes(const MapRow &r) {
    double square = r.scale * r.scale * kernels.inner(r.x, r.x, r.d), along = kernels.inner(r.x, r.grad, r.d);
    double t = std::sqrt(r.c * square), stretch = sinhc(t), bend = kappa(t);
    mix(r, {0, r.scale * r.c * r.scale * r.scale * bend * along, 0, r.scale * stretch}, r.dx);
    r.scalars[0] = along * (stretch + bend * t * t), r.scalars[1] = along * r.scale * bend * square / 2;
}

static void log_map0(const MapRow &r) { mix(r, {0, asinhc(r.c * kernels.inner(r.x, r.x, r.d)), 0, 0}, r.out); }

static void log_map0_slopes(const MapRow &r) {
    double H = r.c * kernels.inner(r.x, r.x, r.d), along = kernels.inner(r.x, r.grad, r.d), falls = fall(H);
    mix(r, {0, -r.c * falls * along, 0, asinhc(H)}, r.dx);
    r.scalars[0] = 0, r.scalars[1] = -along * falls * H / (2 * r.c);
}

// v = part x + what is across; the part along x shrinks by 1 / cosh^2 p in the length t = sqrt(c) |v|_L.
struct Tangent {
    double t, part, shrink, product;

    explicit Tangent(const MapRow &r) {
        double square = kernels.inner(r.x, r.x, r.d);
        product = kernels.inner(r.x, r.y, r.d), part = square == 0 ? 0 : product / square;
        shrink = 1 / (1 + r.c * square);
        t = std::sqrt(r.c * (kernels.across(r.x, r.y, r.d, part) + part * part * square * shrink));
    }
};

static void exp_map(const MapRow &r) {
    Tangent v(r);
    mix(r, {0, std::cosh(v.t), sinhc(v.t), 0}, r.out);
}

static void exp_map_slopes(const MapRow &r) {
    Tangent v(r);
    double stretch = sinhc(v.t);
    double slope = (stretch * kernels.inner(r.x, r.grad, r.d) + kappa(v.t) * kernels.inner(r.y, r.grad, r.d)) / 2;
    // dt^2 = 2 c <h, dv> - 2 c^2 <x, v> shrink <h, dx>,    h = v - part (1 - shrink) x
    double by_v = 2 * r.c * slope, by_x = -by_v * r.c * v.product * v.shrink, of_x = -v.part * (1 - v.shrink);
    mix(r, {0, by_x * of_x, by_x, std::cosh(v.t)}, r.dx);
    mix(r, {0, by_v * of_x, by_v, stretch}, r.dy);
    r.scalars[0] = 0, r.scalars[1] = slope * (v.t * v.t / r.c - r.c * v.product * v.product * v.shrink * v.shrink);
}

static void log_map(const MapRow &r) {
    double H = polar(r.x, r.y, r.d, std::sqrt(r.c), false).H, ratio = asinhc(H) / std::sqrt(1 + H);  // D / sinh D
    mix(r, {-ratio, -2 * H * ratio, 0, 0}, r.out);
}

static void log_map_slopes(const MapRow &r) {
    double unit = std::sqrt(r.c);
    Polar t = polar(r.x, r.y, r.d, unit, false);
    double H = t.H, root = std::sqrt(1 + H), ratio = asinhc(H) / root;
    double ratio_slope = -fall(H) / (2 * root) - ratio / (2 * (1 + H));
    double back_slope = 2 * ratio + 2 * H * ratio_slope;  // of 2 H ratio
    double of_x = kernels.inner(r.x, r.grad, r.d), of_y = kernels.inner(r.y, r.grad, r.d);
    double slope = ratio_slope * (of_y - of_x) - back_slope * of_x;  // dL/dH
    Slopes along = slopes_of_H(t, slope, unit);
    mix(r, {along.x[0], along.x[1], along.x[2], -ratio * (1 + 2 * H)}, r.dx);
    mix(r, {along.y[0], along.y[1], along.y[2], ratio}, r.dy);
    double apart = gap(t, unit);
    r.scalars[0] = 0, r.scalars[1] = slope * (H - apart * apart / (4 * t.cosh_p * t.cosh_q)) / r.c;
}

using Map = void (*)(const MapRow &);
static const Map maps[] = {exp_map0, log_map0, exp_map, log_map};
static const Map slopes_of_maps[] = {exp_map0_slopes, log_map0_slopes, exp_map_slopes, log_map_slopes};
