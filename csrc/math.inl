// Functions of a whole vector. Included by kernels_<isa>.cc inside its namespace.

// e^x to 1 ulp for -87 <= x <= 88; below, a number under 2^-125, which no sum of probabilities notices.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by the polynomial 1 + r + c2 r^2 + ... + c6 r^6 of the least
// relative error there (2^-28; Taylor's of degree 6 has 2^-23), times 2^n.
// ln 2 is taken off in two parts, the first with nine zero bits at its end, so that n * part is exact.
inline Floats Exp(Floats x) {
  x = Max(Min(x, Set(88.0f)), Set(-87.0f));
  const Ints n = ToInts(Mul(x, Set(1.44269504088896341f)));
  const Floats nf = ToFloats(n);
  Floats r = MulAdd(nf, Set(-0.693359375f), x);
  r = MulAdd(nf, Set(2.12194440e-4f), r);
  Floats p = Set(0.0013814539f);
  p = MulAdd(p, r, Set(0.0083687454f));
  p = MulAdd(p, r, Set(0.041668389f));
  p = MulAdd(p, r, Set(0.16666521f));
  p = MulAdd(p, r, Set(0.49999994f));
  p = MulAdd(p, r, Set(1.0f));
  p = MulAdd(p, r, Set(1.0f));
  return AsFloats(AddInts(AsInts(p), ShiftLeft(n, 23)));
}

// gelu(x) with the tanh approximation (Hendrycks and Gimpel 2016): x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
inline Floats GeluTanh(Floats x) {
  const Floats cubic = MulAdd(Mul(Mul(x, x), x), Set(0.044715f), x);
  return Div(x, Add(Set(1.0f), Exp(Mul(cubic, Set(-1.5957691216057308f)))));
}
