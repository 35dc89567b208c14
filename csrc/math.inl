// Functions of a whole vector. Included by kernels_<isa>.cc inside its namespace.

// e^x within 2^-23 of itself for -87.3 <= x <= 88; exactly 0 below -87.7, e^88 above; NaN stays NaN, because Max and Min
// return their second operand where one is NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 p(r) with the minimax polynomial of Cephes' expf (Moshier
// 1989); times 2^n by its exponent bits. At -88 n is -127, whose exponent bits are those of 0. ln 2 is taken off in two
// parts, the first with nine zero bits at its end, so that n * part is exact.
inline Floats Exp(Floats x) {
  x = Min(Set(88.0f), Max(Set(-88.0f), x));
  const Ints n = ToInts(Mul(x, Set(1.44269504088896341f)));
  const Floats nf = ToFloats(n);
  Floats r = MulAdd(nf, Set(-0.693359375f), x);
  r = MulAdd(nf, Set(2.12194440e-4f), r);
  Floats p = Set(1.9875691500e-4f);
  p = MulAdd(p, r, Set(1.3981999507e-3f));
  p = MulAdd(p, r, Set(8.3334519073e-3f));
  p = MulAdd(p, r, Set(4.1665795894e-2f));
  p = MulAdd(p, r, Set(1.6666665459e-1f));
  p = MulAdd(p, r, Set(5.0000001201e-1f));
  p = Add(MulAdd(p, Mul(r, r), r), Set(1.0f));
  return Mul(p, AsFloats(ShiftLeft(AddInts(n, SetInts(127)), 23)));
}

// gelu(x) with the tanh approximation (Hendrycks and Gimpel 2016): x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).
inline Floats GeluTanh(Floats x) {
  const Floats cubic = MulAdd(Mul(Mul(x, x), x), Set(0.044715f), x);
  return Div(x, Add(Set(1.0f), Exp(Mul(cubic, Set(-1.5957691216057308f)))));
}
