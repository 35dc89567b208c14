// The exponential of attention. Included by attention.inl.

// Below every score and above every masked one (kMasked): a lane whose keys are all masked so far has this maximum, so
// that exp(masked - maximum) is 0 and nothing has to be taken back when its first key comes.
constexpr float kNoKeyYet = -1e29f;
constexpr float kMasked = -1e30f;

// e^x for x <= 0, within 2^-23 of itself (csrc/tests/simd_test.inl); exactly 0 below -87.7.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r = 1 + r + r^2 p(r) with the minimax polynomial of Cephes' expf (Moshier
// 1989); times 2^n by its exponent bits. At -88 n is -127, whose exponent bits are those of 0. NaN stays NaN: Max
// returns its second operand where one is NaN.
inline Floats ExpDown(Floats x) {
  x = Max(Set(-88.0f), x);
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
