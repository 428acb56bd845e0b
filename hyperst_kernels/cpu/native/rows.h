// Distance, exterior angle and cone hinge of two rows, and their gradients, from a few sums over the features. In double,
// whose digits make the textbook formulas exact enough for float32 rows; see docs/distance.md and docs/entailment.md.

constexpr double RIGHT_ANGLE = 1.57079632679489661923;

// Hyperbolic polar coordinates of x and y on the unit hyperboloid: rapidities p, q and the angle theta between them.
struct Polar {
    double norm_x, norm_y, difference;  // |x| - |y|
    double p, q, delta;                 // p - q
    double sinh_p, sinh_q, cosh_p, cosh_q;
    double s2, sine;  // sin^2(theta/2) and sin(theta), 0 where one of the two is the origin
    double H;         // sinh^2 of half the distance
    Chord chord;
};

// What a value changes by: dx = x[0] e + x[1] x, dy = y[0] e + y[1] y, and the derivative by the curvature.
struct Slopes {
    double x[2], y[2], c;
};

static double larger(double a, double b) { return a > b ? a : b; }

static double nonzero(double x) { return x == 0 ? 1 : x; }

// unit = sqrt(c). Rows are tangent vectors at the origin, or space components of points.
static Polar polar(const float *x, const float *y, long d, double unit, bool tangent) {
    Polar t;
    double sums[3];
    kernels.compare(x, y, d, sums);
    t.norm_x = std::sqrt(sums[0]), t.norm_y = std::sqrt(sums[1]);
    double total = t.norm_x + t.norm_y;
    t.difference = total == 0 ? 0 : sums[2] / total;
    t.s2 = t.sine = 0;
    t.chord = {1 / nonzero(t.norm_x), 1 / nonzero(t.norm_y), t.difference, 1 / nonzero(total), 0};
    if (t.norm_x != 0 && t.norm_y != 0) {
        // e is orthogonal to the bisector, |bisector|^2 + |e|^2 = 4: what rounding left along it would be amplified by
        // sinh p sinh q, but for obtuse angles, where it does no harm
        double chords[3], &ee = chords[0], &eb = chords[1], &bb = chords[2];
        kernels.chords(x, y, d, t.chord, chords);
        if (bb > 2) {
            t.chord.leftover = eb / bb;
            double apart = 1e5 * std::numeric_limits<double>::epsilon() * t.difference / total;
            ee = larger(ee - eb * t.chord.leftover, 0);
            if (ee < apart * apart) ee = kernels.ray_chord(x, y, d, t.chord);
        }
        t.s2 = ee > 4 ? 1 : ee / 4, t.sine = std::sqrt(ee * bb) / 2;
    }
    double X = unit * t.norm_x, Y = unit * t.norm_y;
    if (tangent) {
        t.p = X, t.q = Y, t.delta = unit * t.difference;
        t.sinh_p = std::sinh(X), t.sinh_q = std::sinh(Y), t.cosh_p = std::cosh(X), t.cosh_q = std::cosh(Y);
    } else {
        t.p = std::asinh(X), t.q = std::asinh(Y);
        t.sinh_p = X, t.sinh_q = Y, t.cosh_p = std::sqrt(1 + X * X), t.cosh_q = std::sqrt(1 + Y * Y);
        // sinh(p - q) = (X^2 - Y^2) / (X cosh q + Y cosh p)
        double mixed = X * t.cosh_q + Y * t.cosh_p;
        t.delta = mixed == 0 ? 0 : std::asinh(unit * t.difference * (X + Y) / mixed);
    }
    double radial = std::sinh(t.delta / 2);
    t.H = radial * radial + t.sinh_p * t.sinh_q * t.s2;
    return t;
}

// Whether an angle of this sine is 0 (or pi) as far as rounding can tell: see the reference, `_on_one_ray`.
static bool on_one_ray(const Polar &t, double sine) {
    double apart = larger(std::fabs(t.difference) / (t.norm_x + t.norm_y), std::sqrt(t.s2));
    return sine <= 4 * std::numeric_limits<double>::epsilon() * apart;
}

// H, and no number where it does not fit: an infinite distance would have slopes of 0.
static double haversine(const Polar &t) { return std::isinf(t.H) ? std::numeric_limits<double>::quiet_NaN() : t.H; }

static double distance(const Polar &t, double unit) { return 2 / unit * std::asinh(std::sqrt(haversine(t))); }

// What the derivatives dp, dq of a value by the rapidities make of its derivative by c.
static double by_curvature(const Polar &t, double dp, double dq, double unit, bool tangent) {
    double p = tangent ? t.p : t.sinh_p / t.cosh_p, q = tangent ? t.q : t.sinh_q / t.cosh_q;
    return (dp * p + dq * q) / (2 * unit * unit);
}

// cosh p - cosh q of points
static double gap(const Polar &t, double unit) {
    return unit * t.difference * (t.sinh_p + t.sinh_q) / (t.cosh_p + t.cosh_q);
}

// weight times the gradients of H by points: dH/dx = (unit/2) ((sinh(p - q) / cosh p) a + sinh(q) e), dy likewise.
static Slopes slopes_of_H(const Polar &t, double weight, double unit) {
    double size = weight * unit / 2, sinh_delta = std::sinh(t.delta);
    double along_x = size * sinh_delta / (t.cosh_p * nonzero(t.norm_x));
    double along_y = -size * sinh_delta / (t.cosh_q * nonzero(t.norm_y));
    return {{size * t.sinh_q, along_x}, {-size * t.sinh_p, along_y}, 0};
}

// Zero for points that coincide.
static Slopes slopes_of_distance(const Polar &t, double unit, bool tangent) {
    double H = haversine(t);
    if (H == 0) return {};
    double slope = 1 / (unit * std::sqrt(H) * std::sqrt(1 + H));  // dd/dH
    double sinh_delta = std::sinh(t.delta), s2 = t.s2;
    double dp = sinh_delta / 2 + s2 * t.cosh_p * t.sinh_q, dq = -sinh_delta / 2 + s2 * t.cosh_q * t.sinh_p;  // of H
    double dc = by_curvature(t, slope * dp, slope * dq, unit, tangent) - distance(t, unit) / (2 * unit * unit);
    if (tangent) {
        // dH/dx = dp unit a + sinh p sinh q / (2 |x|) (e - 2 s^2 a), with the directions a, b and e = a - b
        double x = nonzero(t.norm_x), y = nonzero(t.norm_y);
        double by_x = (t.sinh_p == 0 ? unit : t.sinh_p / x) * t.sinh_q / 2;
        double by_y = (t.sinh_q == 0 ? unit : t.sinh_q / y) * t.sinh_p / 2;
        return {{slope * by_x, slope * (unit * dp - 2 * s2 * by_x) / x},
                {-slope * by_y, slope * (unit * dq - 2 * s2 * by_y) / y},
                dc};
    }
    Slopes found = slopes_of_H(t, slope, unit);
    found.c = dc;
    return found;
}

// At x between the outward ray and the geodesic to y: atan2(sin(theta) sinh q, sinh(q - p) - 2 s^2 cosh p sinh q), both
// scaled by e^-q. pi/2 where x is the origin, 0 where the points coincide.
static double exterior_angle(const Polar &t) {
    if (t.norm_x == 0) return RIGHT_ANGLE;
    double sinh_q = -std::expm1(-2 * t.q) / 2, apart = std::fabs(t.delta);
    double radial = std::copysign(std::exp(-t.p + 2 * larger(t.delta, 0)) * std::expm1(-2 * apart) / 2, -t.delta);
    double across = t.sine * sinh_q, along = radial - 2 * t.s2 * t.cosh_p * sinh_q;
    return across == 0 && along == 0 ? 0 : std::atan2(across, along);
}

static double half_aperture(const Polar &t, double min_radius) {
    double X = t.sinh_p, rim = 2 * min_radius;
    return X <= rim ? RIGHT_ANGLE : std::atan2(rim, std::sqrt(X - rim) * std::sqrt(X + rim));
}

// max(0, exterior angle - eta half-aperture). NaN stays NaN.
static double hinge(const Polar &t, double eta, double min_radius) {
    double value = exterior_angle(t) - eta * half_aperture(t, min_radius);
    return value < 0 ? 0 : value;
}

// With D = sqrt(c) d: dphi/dp = sin(theta) sinh q cosh D / sinh^2 D, dphi/dq = -sin(theta) sinh p / sinh^2 D and
// dphi/dtheta = sinh q (sinh(q - p) + 2 s^2 cosh q sinh p) / sinh^2 D. Zero where the angle is a convention, and across the
// ray where the two are on one, a kink.
static Slopes slopes_of_hinge(const Polar &t, double eta, double min_radius, double unit, bool tangent) {
    if (hinge(t, eta, min_radius) == 0) return {};
    double dp = 0, dq = 0, turn = 0;  // turn = dphi/dtheta / sin(theta)
    if (t.norm_x != 0 && t.H != 0) {
        // sinh D and the others are scaled by e to the minus their argument; the powers of e are what is left
        double D = 2 * std::asinh(std::sqrt(t.H)), sinh_D = -std::expm1(-2 * D) / 2;
        double sinh_p = -std::expm1(-2 * t.p) / 2, sinh_q = -std::expm1(-2 * t.q) / 2;
        double cosh_D = (1 + std::exp(-2 * D)) / 2, cosh_q = (1 + std::exp(-2 * t.q)) / 2;
        double near = std::exp(t.q - D) / (sinh_D * sinh_D), apart = std::fabs(t.delta);
        double radial = std::copysign(std::exp(apart - D) * std::expm1(-2 * apart) / 2, -t.delta);
        dp = t.sine * sinh_q * near * cosh_D;
        dq = -t.sine * sinh_p * std::exp(t.p - 2 * D) / (sinh_D * sinh_D);
        if (t.norm_y != 0 && !on_one_ray(t, t.sine))
            turn = sinh_q * near * (radial + 2 * t.s2 * std::exp(t.p + t.q - D) * cosh_q * sinh_p) / t.sine;
    }
    double X = t.sinh_p, rim = 2 * min_radius;
    if (X > rim) dp += eta * rim * t.cosh_p / (X * std::sqrt(X - rim) * std::sqrt(X + rim));
    // dx = unit dp a + turn / |x| (e - 2 s^2 a), dy = unit dq b + turn / |y| (-e - 2 s^2 b); points move by unit / cosh p
    double x = nonzero(t.norm_x), y = nonzero(t.norm_y), dx = turn / x, dy = turn / y;
    double of_x = unit * dp / (tangent ? 1 : t.cosh_p), of_y = unit * dq / (tangent ? 1 : t.cosh_q);
    return {{dx, (of_x - 2 * t.s2 * dx) / x}, {-dy, (of_y - 2 * t.s2 * dy) / y}, by_curvature(t, dp, dq, unit, tangent)};
}
