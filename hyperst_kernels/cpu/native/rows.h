// Distance, exterior angle and cone hinge of two rows, and their gradients, from a few sums over the features. In double,
// whose digits make the textbook formulas exact enough for float32 rows; see docs/distance.md and docs/entailment.md.

constexpr double RIGHT_ANGLE = 1.57079632679489661923;

// Hyperbolic polar coordinates of x and y on the unit hyperboloid: rapidities p, q and the angle theta between them.
struct Polar {
    double norm_x, norm_y, difference;  // |x| - |y|
    double X, Y;                        // sqrt(c) times the norms
    Rapidity p, q, delta;               // |p - q|
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
    t.X = unit * t.norm_x, t.Y = unit * t.norm_y;
    double apart = std::fabs(unit * t.difference);
    if (tangent) {
        t.p = of_rapidity(t.X), t.q = of_rapidity(t.Y), t.delta = of_rapidity(apart);
    } else {
        // sinh(p - q) = (X^2 - Y^2) / (X cosh q + Y cosh p)
        t.p = of_sinh(t.X), t.q = of_sinh(t.Y);
        double mixed = t.X * t.q.cosh + t.Y * t.p.cosh;
        t.delta = of_sinh(mixed == 0 ? 0 : apart * (t.X + t.Y) / mixed);
    }
    t.H = t.delta.half_sinh2 + t.p.sinh * t.q.sinh * t.s2;
    return t;
}

// sinh(p - q)
static double sinh_delta(const Polar &t) { return std::copysign(t.delta.sinh, t.difference); }

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
    double p = tangent ? t.X : t.X / t.p.cosh, q = tangent ? t.Y : t.Y / t.q.cosh;
    return (dp * p + dq * q) / (2 * unit * unit);
}

// cosh p - cosh q of points
static double gap(const Polar &t, double unit) {
    return unit * t.difference * (t.p.sinh + t.q.sinh) / (t.p.cosh + t.q.cosh);
}

// weight times the gradients of H by points: dH/dx = (unit/2) ((sinh(p - q) / cosh p) a + sinh(q) e), dy likewise.
static Slopes slopes_of_H(const Polar &t, double weight, double unit) {
    double size = weight * unit / 2, along = size * sinh_delta(t);
    double along_x = along / (t.p.cosh * nonzero(t.norm_x)), along_y = -along / (t.q.cosh * nonzero(t.norm_y));
    return {{size * t.q.sinh, along_x}, {-size * t.p.sinh, along_y}, 0};
}

// Zero for points that coincide.
static Slopes slopes_of_distance(const Polar &t, double unit, bool tangent) {
    double H = haversine(t);
    if (H == 0) return {};
    double slope = 1 / (unit * std::sqrt(H) * std::sqrt(1 + H));  // dd/dH
    double half = sinh_delta(t) / 2, s2 = t.s2;
    double dp = half + s2 * t.p.cosh * t.q.sinh, dq = -half + s2 * t.q.cosh * t.p.sinh;  // of H
    double dc = by_curvature(t, slope * dp, slope * dq, unit, tangent) - distance(t, unit) / (2 * unit * unit);
    if (tangent) {
        // dH/dx = dp unit a + sinh p sinh q / (2 |x|) (e - 2 s^2 a), with the directions a, b and e = a - b
        double x = nonzero(t.norm_x), y = nonzero(t.norm_y);
        double by_x = (t.p.sinh == 0 ? unit : t.p.sinh / x) * t.q.sinh / 2;
        double by_y = (t.q.sinh == 0 ? unit : t.q.sinh / y) * t.p.sinh / 2;
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
struct ExteriorAngle {
    double across, along;

    ExteriorAngle(const Polar &t) {
        if (t.norm_x == 0) {
            across = 1, along = 0;
            return;
        }
        double radial = t.delta.half * (t.difference > 0 ? t.q.decay / t.delta.decay : t.p.decay);
        across = t.sine * t.q.half, along = std::copysign(radial, -t.difference) - 2 * t.s2 * t.p.cosh * t.q.half;
    }

    bool is_zero() const { return across == 0 && along >= 0; }

    double value() const { return is_zero() ? 0 : std::atan2(across, along); }
};

static double half_aperture(const Polar &t, double min_radius) {
    double X = t.p.sinh, rim = 2 * min_radius;
    return X <= rim ? RIGHT_ANGLE : std::atan2(rim, std::sqrt(X - rim) * std::sqrt(X + rim));
}

// max(0, exterior angle - eta half-aperture). NaN stays NaN.
static double hinge(const Polar &t, double eta, double min_radius) {
    double value = ExteriorAngle(t).value();
    if (eta != 0) value -= eta * half_aperture(t, min_radius);
    return value < 0 ? 0 : value;
}

// With D = sqrt(c) d: dphi/dp = sin(theta) sinh q cosh D / sinh^2 D, dphi/dq = -sin(theta) sinh p / sinh^2 D and
// dphi/dtheta = sinh q (sinh(q - p) + 2 s^2 cosh q sinh p) / sinh^2 D. Zero where the angle is a convention, and across the
// ray where the two are on one, a kink.
static Slopes slopes_of_hinge(const Polar &t, double eta, double min_radius, double unit, bool tangent) {
    if (eta == 0 ? ExteriorAngle(t).is_zero() : hinge(t, eta, min_radius) == 0) return {};
    double dp = 0, dq = 0, turn = 0;  // turn = dphi/dtheta / sin(theta)
    if (t.norm_x != 0 && t.H != 0) {
        double inverse = 1 / (2 * std::sqrt(t.H) * std::sqrt(1 + t.H)), far = t.q.sinh * inverse;
        dp = t.sine * far * ((1 + 2 * t.H) * inverse), dq = -t.sine * (t.p.sinh * inverse) * inverse;
        if (t.norm_y != 0 && !on_one_ray(t, t.sine))
            turn = far * ((2 * t.s2 * t.q.cosh * t.p.sinh - sinh_delta(t)) * inverse) / t.sine;
    }
    double X = t.p.sinh, rim = 2 * min_radius;
    if (eta != 0 && X > rim) dp += eta * rim * t.p.cosh / (X * std::sqrt(X - rim) * std::sqrt(X + rim));
    // dx = unit dp a + turn / |x| (e - 2 s^2 a), dy = unit dq b + turn / |y| (-e - 2 s^2 b); points move by unit / cosh p
    double x = nonzero(t.norm_x), y = nonzero(t.norm_y), dx = turn / x, dy = turn / y;
    double of_x = unit * dp / (tangent ? 1 : t.p.cosh), of_y = unit * dq / (tangent ? 1 : t.q.cosh);
    return {{dx, (of_x - 2 * t.s2 * dx) / x}, {-dy, (of_y - 2 * t.s2 * dy) / y}, by_curvature(t, dp, dq, unit, tangent)};
}
