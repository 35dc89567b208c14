// The two numbers that stand for "no key" in attention. Included by attention.inl; the exponential is in math.inl.

// Below every score and above every masked one (kMasked): a lane whose keys are all masked so far has this maximum, so
// that exp(masked - maximum) is 0 and nothing has to be taken back when its first key comes.
constexpr float kNoKeyYet = -1e29f;
constexpr float kMasked = -1e30f;
